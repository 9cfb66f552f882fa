"""The explicit map of special tokens: resolved, checked, and proposed by duty where it is missing.

Names do not tell duties to a model: one whose end of a turn has no trained row never stops. So the map is the user's to
decide, and what is proposed here is only shown, never applied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.surgeon.vocabulary import Vocabulary

_NAMES: dict[str, tuple[str, ...]] = {
    "begin of text": ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>"),
    "end of text": ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"),
    "padding": ("<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "[PAD]"),
    "begin of role": ("<|start_header_id|>", "<|im_start|>", "<start_of_turn>", "<|start|>"),
    "end of role": ("<|end_header_id|>", "<|im_sep|>", "<|message|>"),
    "end of turn": ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|eot|>"),
    "end of message": ("<|eom_id|>", "<|eom|>"),
    "begin of tool call": ("<|python_tag|>", "<tool_call>", "<|python_start|>"),
    "end of tool call": ("</tool_call>", "<|python_end|>"),
    "image": ("<|image|>", "<|image_pad|>", "<image>"),
    "repository": ("<|repo_name|>", "<repo_name>", "<reponame>"),
    "file": ("<|file_sep|>", "<file_sep>"),
    "middle, prefix": ("<|fim_prefix|>", "<fim_prefix>", "<|fim_begin|>"),
    "middle": ("<|fim_middle|>", "<fim_middle>", "<|fim_hole|>"),
    "middle, suffix": ("<|fim_suffix|>", "<fim_suffix>", "<|fim_end|>"),
}
"""What the special tokens of Llama 3, ChatML (Qwen, SmolLM2) and a few others are there for."""

_STANDS_IN: dict[str, tuple[str, ...]] = {
    "begin of text": ("end of text", "padding"),
    "end of text": ("padding", "end of turn"),
    "padding": ("end of text", "end of turn"),
    "begin of role": ("begin of text", "end of text"),
    "end of turn": ("end of text",),
    "end of message": ("end of turn", "end of text"),
    "begin of tool call": ("end of text",),
    "end of tool call": ("end of message", "end of turn"),
}
"""Duties to look for, in this order, where the student has no token of the same duty. In ChatML <|endoftext|> stands
between documents, which a begin of text does too."""

_AFTER_ROLE = "\n"
"""What follows the role in ChatML, where no token ends it."""


@dataclass(frozen=True)
class MappedToken:
    """A donor token that takes the rows of a student token."""

    donor: str
    donor_id: int
    student: str
    student_id: int


def resolve_map(student: Vocabulary, donor: Vocabulary, special_tokens: Mapping[str, str]) -> tuple[MappedToken, ...]:
    """recipe.special_tokens with ids, in the order of the donor's. A student token is a name or a text that is one.

    Raises:
        BadInputError: a token is unknown, or the begin and the end of a turn would be one token.
    """
    mapped = []
    for donor_token, student_token in special_tokens.items():
        donor_id, student_id = donor.find(donor_token), student.find(student_token)
        if donor_id is None:
            raise BadInputError(
                f"recipe.special_tokens maps {donor_token!r}, which the donor's tokenizer does not have"
                f"{_did_you_mean(donor_token, donor)}; remove or correct it"
            )
        if student_id is None:
            raise BadInputError(
                f"recipe.special_tokens maps {donor_token!r} to {student_token!r}, which is neither a token of the "
                f"student nor a text that is one of its tokens{_did_you_mean(student_token, student)}; its special "
                f"tokens are {_listed(student.special_names)}"
            )
        mapped.append(MappedToken(donor_token, donor_id, student_token, student_id))
    taken = [token for token in mapped if duty_of(token.donor) in {"begin of role", "end of turn"}]
    for one in taken:
        for other in taken:
            if one.student_id == other.student_id and duty_of(one.donor) != duty_of(other.donor):
                raise BadInputError(
                    f"recipe.special_tokens maps both {one.donor} and {other.donor} to {one.student!r}, so that the "
                    f"model could not tell the begin of a turn from its end; map them to two tokens"
                )
    return tuple(sorted(mapped, key=lambda token: token.donor_id))


def required_tokens(donor: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> list[str]:
    """Special tokens without which a chat in the donor's format cannot start or stop, in the order of their ids.

    A tokenizer may have several chat templates by name, such as one for tools: a token of any of them counts.
    """
    stored: str | dict[str, str] | None = donor.chat_template
    templates = list(stored.values()) if isinstance(stored, dict) else [stored or ""]
    names = {name for name in vocabulary.special_names if any(name in template for template in templates)}
    names |= {token for token in (donor.bos_token, donor.eos_token, donor.pad_token) if token}
    return sorted(names, key=lambda name: vocabulary.by_text[name])


def require_complete(
    student: PreTrainedTokenizerFast,
    donor: PreTrainedTokenizerFast,
    vocabularies: tuple[Vocabulary, Vocabulary],
    special_tokens: Mapping[str, str],
    ends: Iterable[str] = (),
) -> None:
    """Checks that every required token of the donor is mapped, or is one of the student's by name.

    `vocabularies` are the student's and the donor's; `ends` are required too.

    Raises:
        BadInputError: some are not; with a map that can be pasted of those whose duty is known.
    """
    ours, theirs = vocabularies
    missing = [
        token
        for token in sorted({*required_tokens(donor, theirs), *ends}, key=lambda name: theirs.by_text[name])
        if token not in special_tokens and token not in ours.special_names
    ]
    if missing:
        proposal = proposed_map(student, donor, ours, missing)
        undecided = [token for token in missing if token not in proposal]
        advice = [f"decide yourself what takes the place of {', '.join(undecided)}"] if undecided else []
        advice += [f"consider {as_yaml(proposal)}"] if proposal else []
        raise BadInputError(
            f"recipe.special_tokens does not say which rows of the student {', '.join(missing)} of the donor take, and "
            f"without them a chat does not start or stop; {', and '.join(advice)}"
        )


def proposed_map(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast, ours: Vocabulary, tokens: Iterable[str]
) -> dict[str, str]:
    """Student tokens of the same duties as these tokens of the donor. A token without a known duty, or of a duty that
    no token of the student has or can lend, is left out: it is the user's to decide."""
    counterparts = {token: _counterpart(token, student, donor, ours) for token in tokens}
    return {token: counterpart for token, counterpart in counterparts.items() if counterpart is not None}


def useful_additions(
    student: PreTrainedTokenizerFast,
    donor: PreTrainedTokenizerFast,
    vocabularies: tuple[Vocabulary, Vocabulary],
    special_tokens: Mapping[str, str],
) -> dict[str, str]:
    """Donor tokens that are neither mapped nor the student's by name, with the student's token of the same duty."""
    ours, theirs = vocabularies
    found = {}
    for token in theirs.by_text:
        duty = duty_of(token)
        if token not in special_tokens and token not in ours.by_text and duty is not None:
            counterpart = _counterpart(token, student, donor, ours)
            # A row that stands in is lent only where a chat needs it: two tokens of one row halve its probability.
            if counterpart is not None and duty_of(counterpart) == duty:
                found[token] = counterpart
    return found


def as_yaml(special_tokens: Mapping[str, str]) -> str:
    """The map in one line of YAML, as a profile takes it."""
    return "{" + ", ".join(f"{json.dumps(a)}: {json.dumps(b)}" for a, b in special_tokens.items()) + "}"


def _counterpart(
    token: str, student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast, ours: Vocabulary
) -> str | None:
    duty = duty_of(token) or _duty_in(donor, token)
    if duty is None:
        return None
    if duty == "end of role":
        named = [name for name in _NAMES[duty] if name in ours.by_text]
        return named[0] if named else _AFTER_ROLE if ours.find(_AFTER_ROLE) is not None else None
    wanted = (duty, *_STANDS_IN.get(duty, ()))
    # Known names come first: what SmolLM2 declares as its bos is the begin of a role, and its pad the end of a turn.
    names = [name for each in wanted for name in _NAMES[each]] + [
        name for each in wanted for name in _declared(student, each)
    ]
    return next((name for name in names if name in ours.by_text), None)


def _declared(student: PreTrainedTokenizerFast, duty: str) -> list[str]:
    declared = {
        "begin of text": student.bos_token,
        "end of turn": student.eos_token,
        "end of text": student.eos_token,
        "padding": student.pad_token,
    }
    token = declared.get(duty)
    return [] if token is None else [token]


def duty_of(token: str) -> str | None:
    """What a special token is there for, where its name is a known one."""
    return next((duty for duty, names in _NAMES.items() if token in names), None)


def _duty_in(donor: PreTrainedTokenizerFast, token: str) -> str | None:
    """What the donor's tokenizer says of a token whose name is not known here."""
    declared = ((donor.bos_token, "begin of text"), (donor.eos_token, "end of turn"), (donor.pad_token, "padding"))
    return next((duty for name, duty in declared if name == token), None)


def _did_you_mean(token: str, vocabulary: Vocabulary) -> str:
    close = get_close_matches(token, list(vocabulary.by_text), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed(names: Iterable[str]) -> str:
    """Some names; Llama 3 has 256."""
    shown = list(names)
    return ", ".join(shown[:24]) + (f" and {len(shown) - 24} more" if len(shown) > 24 else "")
