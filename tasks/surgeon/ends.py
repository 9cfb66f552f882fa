"""The tokens that end an answer: which they are, and whether a map of special tokens leaves them ends.

A tokenizer names one; generation_config.json may list more, such as Llama 3's <|end_of_text|>, <|eom_id|> and
<|eot_id|>. An end that takes the row of a text token, or of what begins a turn, stops answers in the middle or never.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import TOKEN_ID_FIELDS, read_json
from tasks.modeling.tokenizer_files import real_vocab_size
from tasks.surgeon.special_tokens import MappedToken, duty_of
from tasks.surgeon.vocabulary import Vocabulary


def listed_ends(directory: Path) -> tuple[int, ...]:
    """The eos_token_id, one or several, of generation_config.json; of config.json where a repository has no such file,
    as the stage models completes it; () without either."""
    generation = _stored(directory, "generation_config.json")
    return _as_ids((generation or _stored(directory, "config.json")).get("eos_token_id"))


def token_ids(directory: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """bos_token_id, eos_token_id and pad_token_id of a model, for config.json and generation_config.json.

    generation_config.json knows the ends best, the tokenizer the others; Qwen2.5's tokenizer has no BOS and its configs
    do. Without a padding token the first end stands in. A model that nobody names a BOS of has None.
    """
    stored = (_stored(directory, "generation_config.json"), _stored(directory, "config.json"))
    eos = stored[0].get("eos_token_id")
    eos = tokenizer.eos_token_id if eos is None else eos
    size = real_vocab_size(tokenizer)

    def known(name: str) -> int | None:
        candidates = (getattr(tokenizer, name), *(config.get(name) for config in stored))
        # Some configs have -1 for none.
        return next((token for token in candidates if isinstance(token, int) and 0 <= token < size), None)

    bos, pad = known("bos_token_id"), known("pad_token_id")
    first_end = next(iter(_as_ids(eos)), None)
    return dict(zip(TOKEN_ID_FIELDS, (bos, eos, first_end if pad is None else pad), strict=True))


def end_names(donor: PreTrainedTokenizerFast, vocabulary: Vocabulary, listed: Iterable[int]) -> tuple[str, ...]:
    """The donor's special tokens that end an answer, in the order of their ids: its EOS, and those of the ids `listed`.

    `vocabulary` is the donor's.
    """
    ends = {*listed, donor.eos_token_id}
    return tuple(name for name, token in vocabulary.special_names.items() if token in ends)


def check_ends(
    mapped: Sequence[MappedToken], student: Vocabulary, ends: Iterable[str], others_of_chats: Iterable[str]
) -> None:
    """Refuses a map by which an answer could not end: an end needs a special token of the student to itself.

    `ends` are the donor's (`end_names`), `others_of_chats` the other special tokens that its chats are made of.

    Raises:
        BadInputError: an end, or the end of a turn, takes the row of a text token, of what begins a turn, or the row
            that another token of chats takes, whose duty is none that an end may share.
    """
    is_end = {*ends, *(token.donor for token in mapped if duty_of(token.donor) == "end of turn")}
    for end in (token for token in mapped if token.donor in is_end):
        if end.student_id not in student.special:
            raise BadInputError(
                f"recipe.special_tokens maps {end.donor}, which ends an answer, to {end.student!r}, which is text: the "
                f"model would end where it writes that, or never; name a special token of the student"
            )
        if duty_of(end.student) == "begin of role":
            raise BadInputError(
                f"recipe.special_tokens maps {end.donor}, which ends an answer, to {end.student}, which begins a turn; "
                f"name the student's end of a turn"
            )
        for other in mapped:
            begins = duty_of(other.donor) == "begin of role" or (
                duty_of(other.donor) is None and other.donor in others_of_chats
            )
            if other.student_id == end.student_id and other.donor not in is_end and begins:
                raise BadInputError(
                    f"recipe.special_tokens maps both {other.donor} and {end.donor} to {end.student!r}, so that the "
                    f"model could not tell the end of an answer from what else a chat is made of; map them to two "
                    f"tokens"
                )


def shadowed_ends(rows: Mapping[int, int], names: Mapping[int, str], ends: Set[str]) -> list[dict[str, str]]:
    """Ends that greedy decoding does not take: of the donor tokens that have one row, that of the lowest id is none.

    `rows` are the student ids by donor id of the special tokens, `names` the donor's. Each is {end, taken}.
    """
    tokens_of: dict[int, list[int]] = {}
    for donor_id, student_id in sorted(rows.items()):
        tokens_of.setdefault(student_id, []).append(donor_id)
    return [
        {"end": names[token], "taken": names[tokens[0]]}
        for tokens in tokens_of.values()
        if names[tokens[0]] not in ends
        for token in tokens
        if names[token] in ends
    ]


def _as_ids(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def _stored(directory: Path, name: str) -> dict[str, Any]:
    return read_json(directory / name) if (directory / name).is_file() else {}
