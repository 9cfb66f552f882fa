"""What a teacher says today of positions that a logit store holds, and how far that may be from what is stored.

If each log-probability of the teacher is off by at most τ, the kept mass is off by at most τ/2 and the KL divergence is
at most τ². What the store rounds comes on top: twice the sum bounds the square of a sum of two errors.
"""

from __future__ import annotations

from tasks.artifacts.frozen import Frozen

RECOMPUTED_FILE = "recomputed.json"
"""In the worker's scratch folder."""
TEACHER_ERROR = {"float32": 1e-3, "bfloat16": 0.1}
"""τ in nats by the teacher's dtype: between batch shapes and devices float32 differs by up to 1e-4, bfloat16 by some
1e-2 and, where probabilities are small, by 0.1."""


class Comparison(Frozen):
    """One measure over all recomputed positions."""

    measure: str
    unit: str
    mean: float
    largest: float
    tolerance: float
    """That of the position with the largest excess."""
    num_outside: int
    """Positions beyond their own tolerance."""
    worst: str = ""
    """Where the excess is largest, with both values."""


class Recomputed(Frozen):
    """The worker's answer."""

    num_positions: int
    num_rows: int
    dtype: str
    device: str
    comparisons: tuple[Comparison, ...]

    def problems(self, uri: str) -> list[str]:
        """One sentence for each measure that is out of tolerance."""
        return [
            f"{uri}: the teacher does not say what is stored: {every.measure} differs by up to {every.largest:.3g} "
            f"{every.unit} at {every.num_outside} of {self.num_positions} positions, {every.tolerance:.3g} is allowed "
            f"({every.worst})"
            for every in self.comparisons
            if every.num_outside
        ]

    def lines(self) -> list[str]:
        """What was measured, for people."""
        return [
            f"recomputed {self.num_positions} positions of {self.num_rows} rows with the teacher in {self.dtype} on "
            f"{self.device}",
            *(
                f"  {every.measure}: off by {every.mean:.3g} {every.unit} on average, {every.largest:.3g} at most "
                f"({every.tolerance:.3g} allowed)"
                for every in self.comparisons
            ),
        ]
