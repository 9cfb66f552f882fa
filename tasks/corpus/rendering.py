"""Documents as rows of one tokenizer: which tokens, and which of them are targets.

A text's targets are all its tokens but the first; a conversation's are each assistant turn's content and end token.
Boundaries are found by comparing token ids and never by counting characters: the ids of the conversation up to an
answer must be a prefix of the whole conversation's ids, and what is masked must decode to the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.corpus.documents import Document
from tasks.exercises.holdout import Message
from tasks.logits.rows import Row, make_row
from tasks.modeling.template_date import rendered

_PROBE = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
Overlong = Literal["split", "drop", "error"]


@dataclass(frozen=True)
class _Prefix:
    """A conversation up to the point where the assistant begins answer `turn`."""

    text: str
    turn: int


class Renderer:
    """Turns documents into rows, and counts in `dropped` what it leaves out and why."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        end_ids: frozenset[int],
        *,
        day: date,
        max_tokens: int,
        overlong_text: Overlong,
        overlong_chat: Overlong,
    ) -> None:
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.max_tokens = max_tokens
        self.overlong_text = overlong_text
        self.overlong_chat = overlong_chat
        self.dropped: Counter[str] = Counter()
        self._day = day
        specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(re.escape(text) for text in specials)) if specials else None
        self.start_id = self._find_start_id()

    @property
    def template_sha256(self) -> str | None:
        """Hash of the chat template, None without one."""
        return sha256_hex(self.tokenizer.get_chat_template().encode()) if self.tokenizer.chat_template else None

    def rows(self, documents: Sequence[Document]) -> Iterator[Row]:
        """The rows of some documents, in their order."""
        kept = [document for document in documents if self._usable(document)]
        texts = [document.content for document in kept if not document.messages]
        prefixes = {index: self._prefixes(document) for index, document in enumerate(kept) if document.messages}
        chat_texts = [prefix.text for group in prefixes.values() for prefix in group]
        encoded_texts = iter(self._encode(texts))
        encoded_chats = iter(self._encode(chat_texts))
        for index, document in enumerate(kept):
            if document.messages:
                group = prefixes[index]
                yield from self._chat_row(document, group, [next(encoded_chats).ids for _ in group])
            else:
                yield from self._text_rows(document, next(encoded_texts))

    def _encode(self, texts: list[str]) -> list[Encoding]:
        encodings: list[Encoding] = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return encodings

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _usable(self, document: Document) -> bool:
        parts = [message.content for message in document.messages] or [document.content]
        answers = [message.content for message in document.messages if message.role == "assistant"]
        reason = None
        if self._special is not None and any(self._special.search(part) for part in parts):
            # Read as a control token it would end a turn or start one in the middle of a text.
            reason = "special_token"
        elif not document.content.strip() or any(not answer for answer in answers):
            reason = "empty"
        elif document.messages and not answers:
            reason = "no_answer"
        elif document.messages and document.messages[0].role == "assistant":
            reason = "no_question"
        if reason is not None:
            self.dropped[reason] += 1
        return reason is None

    # Conversations

    def render(self, messages: Sequence[Message], *, ask: bool) -> str:
        """The conversation under the template with the pinned date; `ask` adds the header of an assistant's turn.

        Raises:
            BadInputError: the tokenizer has no template, or the template refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise BadInputError(
                "the tokenizer has no chat template, so conversations cannot be written; use an instruct model's "
                "tokenizer or text sources only"
            )
        try:
            return rendered(self.tokenizer, [message._asdict() for message in messages], self._day, ask=ask)
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise BadInputError(
                f"the chat template refuses a conversation of the roles {roles} ({error}); remove such conversations "
                f"from the source"
            ) from error

    def _prefixes(self, document: Document) -> list[_Prefix]:
        """One for each answer, then the whole conversation."""
        messages = document.messages
        turns = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
        groups = [_Prefix(self.render(messages[:turn], ask=True), turn) for turn in turns]
        return [*groups, _Prefix(self.render(messages, ask=False), -1)]

    def _chat_row(self, document: Document, prefixes: list[_Prefix], encoded: list[list[int]]) -> Iterator[Row]:
        whole = encoded[-1]
        mask = np.zeros(len(whole), np.uint8)
        answers = []
        for prefix, ids in zip(prefixes[:-1], encoded[:-1], strict=True):
            answer = document.messages[prefix.turn].content
            end = next((at for at in range(len(ids), len(whole)) if whole[at] in self.end_ids), None)
            if whole[: len(ids)] != ids or end is None or self._decode(whole[len(ids) : end]) != answer:
                raise BadInputError(
                    f"the chat template does not keep the answer {answer[:40]!r} of {document.source} between its "
                    f"header and an end token of generation_config.json; use a template that renders every turn as "
                    f"it is"
                )
            mask[len(ids) : end + 1] = 1
            answers.append(answer)
        if self.start_id is not None:
            count = whole.count(self.start_id)
            if count > 1 or (count == 1 and whole[0] != self.start_id):
                raise BadInputError(
                    f"the chat template writes {count} beginning-of-text tokens; it may write one, first"
                )
            if count == 0:
                whole = [self.start_id, *whole]
                mask = np.concatenate([np.zeros(1, np.uint8), mask])
        if self._too_long(len(whole), document, self.overlong_chat):
            return
        yield make_row(whole, mask, "".join(answers), "chat", document.source, document.sha256())

    # Texts

    def _text_rows(self, document: Document, encoding: Encoding) -> Iterator[Row]:
        ids, starts_character = encoding.ids, _starts_character(encoding.offsets)
        start = [] if self.start_id is None else [self.start_id]
        room = self.max_tokens - len(start)
        if self._decode(ids) != document.content:
            self.dropped["not_reversible"] += 1
            return
        if self.overlong_text != "split" and self._too_long(len(start) + len(ids), document, self.overlong_text):
            return
        whole_sha256 = document.sha256()
        for begin, end in _pieces(starts_character, room):
            # Without a BOS the first character is context only, be it one token or several.
            first = begin if start else next((t for t in range(begin + 1, end) if starts_character[t]), end)
            if first == end:
                self.dropped["no_target"] += 1
                continue
            mask = np.zeros(len(start) + end - begin, np.uint8)
            mask[len(start) + first - begin :] = 1
            text = self._decode(ids[first:end])
            yield make_row([*start, *ids[begin:end]], mask, text, "text", document.source, whole_sha256)

    def _too_long(self, num_tokens: int, document: Document, overlong: Overlong) -> bool:
        if num_tokens <= self.max_tokens:
            return False
        if overlong == "error":
            raise BadInputError(
                f"a document of {document.source} has {num_tokens} tokens, over max_tokens={self.max_tokens}: it "
                f"begins with {document.content[:40]!r}; raise max_tokens, or set overlong_{document.kind} to drop"
            )
        self.dropped["overlong"] += 1
        return True

    def _find_start_id(self) -> int | None:
        """The BOS, if this family starts every text with it.

        A tokenizer may name a BOS and not use it so: SmolLM2's is the token that begins every chat turn.
        """
        bos: Any = self.tokenizer.bos_token_id
        if bos is None:
            return None
        if self.tokenizer.encode("a")[:1] == [bos]:
            return int(bos)
        if self.tokenizer.chat_template:
            ids = self._encode([self.render(_PROBE, ask=False)])[0].ids
            if ids.count(bos) == 1 and ids[0] == bos:
                return int(bos)
        return None


def _starts_character(offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether a token begins with a whole character. Tokens that share one character have the same offsets."""
    return [at == 0 or offsets[at][0] >= offsets[at - 1][1] for at in range(len(offsets))]


def _pieces(starts_character: list[bool], room: int) -> Iterator[tuple[int, int]]:
    """Bounds of pieces of at most `room` tokens, none of which cuts a character."""
    begin = 0
    while begin < len(starts_character):
        end = min(begin + room, len(starts_character))
        while end < len(starts_character) and not starts_character[end]:
            end -= 1
        if end == begin:
            raise AssertionError(f"one character takes more than {room} tokens")
        yield begin, end
        begin = end
