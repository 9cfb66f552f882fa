"""Running text under lm-eval, read as the beginning of a document.

It comes after the token that the model's documents begin with, as where bits per byte are counted: there is no chat
template that would write it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerFast


class PlainTextLM:
    """Stands before lm-eval's class among the bases."""

    plain_text = False
    """Whether what is asked now is running text, without a chat template: LoadedTasks.plain_text."""
    tokenizer: PreTrainedTokenizerFast

    @cached_property
    def document_start(self) -> int:
        return self.find_document_start()

    def find_document_start(self) -> int:
        """As tasks/modeling/document_start.py has it."""
        raise NotImplementedError

    def tok_encode(self, string: Any, *args: Any, **kwargs: Any) -> Any:
        if self.plain_text:
            # A special token that is written out in a text is text.
            return self.tokenizer.encode(string, add_special_tokens=False, split_special_tokens=True)
        return super().tok_encode(string, *args, **kwargs)  # type: ignore[misc]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = super()._encode_pair(context, continuation)  # type: ignore[misc]
        return ([self.document_start, *before] if self.plain_text else before), after
