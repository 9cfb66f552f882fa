"""How many tokens a text is, and what documents are in number."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LARGE = 100_000


def tokens_of_bytes(size: float, bytes_per_token: float, vocabulary: int) -> float:
    """Tokens of so many bytes of English. A vocabulary takes 0.33 byte a token less with each halving below 100,000:
    4.4 at 100k, 4.1 at 49k, 2.2 at 1,024."""
    halvings = max(0.0, math.log2(_LARGE / vocabulary))
    return size / max(1.0, bytes_per_token - 0.33 * halvings)


@dataclass(frozen=True)
class Documents:
    """Rows of tokens."""

    rows: float = 0
    tokens: float = 0
    targets: float = 0

    @classmethod
    def of(cls, count: float, length: float, targets: float, longest: int) -> Documents:
        """`count` documents of `length` tokens, of which the part `targets` is predicted, cut at `longest` tokens."""
        tokens = count * length
        return cls(rows=count * max(1.0, length / longest), tokens=tokens, targets=targets * tokens)

    @property
    def length(self) -> float:
        """Tokens of a row, on average."""
        return self.tokens / self.rows if self.rows else 0.0

    def row_of_a_token(self, spread: float) -> float:
        """Tokens of the row that a token is in, on average. `spread`: mean square of a row's over its squared mean."""
        return spread * self.length

    def pairs(self, spread: float) -> float:
        """Attended pairs, n (n + 1) / 2 of a row of n tokens."""
        return self.tokens * (self.row_of_a_token(spread) + 1) / 2

    def scaled(self, factor: float) -> Documents:
        """So many times as many rows."""
        return Documents(self.rows * factor, self.tokens * factor, self.targets * factor)

    def first(self, rows: float | None) -> Documents:
        """At most so many rows of them; all where that is None."""
        return self if rows is None else self.scaled(min(1.0, rows / max(1.0, self.rows)))

    def __add__(self, other: Documents) -> Documents:
        return Documents(self.rows + other.rows, self.tokens + other.tokens, self.targets + other.targets)
