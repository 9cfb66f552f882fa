"""The bench's rows of one change of vocabulary as one Markdown table: `python -m tests.bench.swap_table`.

A line a method, a column a kind of text, bits per byte before any training and after the warm-up.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.publish.tables import MISSING, Table
from tests.bench.harness import read
from tests.bench.paths import RESULTS
from tests.bench.rows_surgery import KINDS, METHODS

_TITLES = {"prose": "prose", "code": "code", "digits": "digits", "non_latin": "other scripts"}


def methods_table(values: Mapping[str, float | None], direction: str) -> Table:
    """Of one direction; `values` are the rows' by name. What was not measured is a dash."""

    def of(state: str, kind: str) -> str:
        value = values.get(f"surgery.bits_per_byte.{direction}.{state}.{kind}")
        return MISSING if value is None else f"{value:.3f}"

    rows = [("before", *(of("before", kind) for kind in KINDS))]
    rows += [
        (method, *(f"{of(f'{method}.start', kind)} → {of(f'{method}.warm', kind)}" for kind in KINDS))
        for method in METHODS[direction]
    ]
    return Table(("method", *(_TITLES[kind] for kind in KINDS)), tuple(rows))


def main() -> None:
    """Prints both directions."""
    values = {row.name: row.value for row in read(RESULTS)}
    for direction in METHODS:
        print(f"\n{direction.replace('_', ' ')}, start → warm\n\n{methods_table(values, direction).markdown()}")


if __name__ == "__main__":
    main()
