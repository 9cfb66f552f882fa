"""What a teacher says today of positions that a logit store holds, and how far that may be from what is stored."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from tasks.artifacts.frozen import Frozen

RECOMPUTED_FILE = "recomputed.json"
"""In the worker's scratch folder."""

Measure: TypeAlias = Literal["the following token's log-probability", "kept mass", "KL from the teacher to the store"]


class Tolerance(NamedTuple):
    """What is allowed besides the store's own rounding."""

    mean: float
    single: float
    """At any one position."""


TOLERANCES: dict[str, dict[Measure, Tolerance]] = {
    "float32": {
        "the following token's log-probability": Tolerance(1e-4, 1e-3),
        "kept mass": Tolerance(5e-5, 5e-4),
        "KL from the teacher to the store": Tolerance(1e-6, 1e-5),
    },
    "bfloat16": {
        "the following token's log-probability": Tolerance(0.03, 2.0),
        "kept mass": Tolerance(0.01, 0.1),
        "KL from the teacher to the store": Tolerance(2e-3, 0.1),
    },
}
"""By the teacher's dtype. bfloat16 has another rounding at each batch shape: SmolLM2 on a CPU, rows with and without
padding, 544 positions, gave 0.003 nats on average and 0.57 at one token of probability 6e-6."""


class Comparison(Frozen):
    """One measure over all recomputed positions."""

    measure: Measure
    unit: str
    mean: float
    mean_allowed: float
    largest: float
    """At the position that is worst against what is allowed there."""
    largest_allowed: float
    where: str
    num_outside: int
    """Positions beyond what is allowed there."""

    @property
    def failed(self) -> bool:
        return self.num_outside > 0 or self.mean > self.mean_allowed

    def told(self) -> str:
        """For people."""
        return (
            f"{self.measure}: off by {self.mean:.3g} {self.unit} on average ({self.mean_allowed:.3g} allowed), by "
            f"{self.largest:.3g} at {self.where} ({self.largest_allowed:.3g} allowed)"
        )


class Recomputed(Frozen):
    """The worker's answer."""

    num_positions: int
    num_rows: int
    dtype: str
    device: str
    comparisons: tuple[Comparison, ...]
    agreement: float | None = None
    """Part of the positions whose likeliest token is the same; None of stores of draws."""

    def problems(self, uri: str) -> list[str]:
        """One sentence for each measure that is out of tolerance."""
        return [
            f"{uri}: the teacher does not say what is stored: {every.told()}; {every.num_outside} of "
            f"{self.num_positions} positions are outside"
            for every in self.comparisons
            if every.failed
        ]

    def audit(self, name: str) -> list[str]:
        """How far the store is from another model, `name`: a quantised teacher's from the one it was made of."""
        gold, _, divergence = self.comparisons
        agreed = "" if self.agreement is None else f"; the same likeliest token at {self.agreement:.2%}"
        return [
            f"compared {self.num_positions} positions of {self.num_rows} rows with {name} in {self.dtype} on "
            f"{self.device}: KL from it to the store {divergence.mean:.3g} nats on average over the store's entries "
            f"and their tail, {divergence.largest:.3g} at {divergence.where}{agreed}",
            f"  {gold.measure}: off by {gold.mean:.3g} nats on average, by {gold.largest:.3g} at {gold.where}",
        ]

    def beyond(self, uri: str, name: str, max_kl: float) -> list[str]:
        """One sentence where the mean divergence of an audit is too large."""
        mean = self.comparisons[2].mean
        if mean <= max_kl:
            return []
        return [
            f"{uri}: its distributions are {mean:.3g} nats from those of {name} on average, and --max-kl allows "
            f"{max_kl:g}; dump with a finer quantisation, or with {name} itself"
        ]

    def lines(self) -> list[str]:
        """What was measured."""
        return [
            f"recomputed {self.num_positions} positions of {self.num_rows} rows with the teacher in {self.dtype} on "
            f"{self.device}; what is allowed includes the store's rounding",
            *(f"  {every.told()}" for every in self.comparisons),
        ]
