"""`python -m tests.bench [--only GROUP|ROWS]`: measures, merges into build/bench.json, prints the rows as a table.

Exit: 0 if every row is ok, 1 if one is not, 2 if the group has no rows or no row has such a name.
"""

from __future__ import annotations

import os

# Before numpy and torch are imported: they read it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from tests.bench.harness import beside, discard_finished, load, machine, measure, merge, show
from tests.bench.paths import RESULTS
from tests.bench.records import GROUPS, Declared, Row
from tests.bench.rows import ROWS


def main(arguments: Sequence[str], declared: Sequence[Declared] = ROWS, file: Path = RESULTS) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measures what the README promises.")
    parser.add_argument(
        "--only",
        help=f"a group ({', '.join(GROUPS)}), or a pattern of rows' names such as 'train.loss.over_*', which are "
        "measured with what comes of the same measurement; the others stay in the file as they are",
    )
    only = parser.parse_args(arguments).only
    whole = only is None or only in GROUPS
    chosen = [entry for entry in declared if only in (None, entry.group) or fnmatchcase(entry.name, only)]
    if only is None and not torch.cuda.is_available():
        chosen = [entry for entry in chosen if entry.group != "gpu"]
        print("no CUDA device: the rows gpu.* are left as they are")
    if not chosen:
        with_rows = sorted({entry.group for entry in declared}, key=GROUPS.index)
        print(f"no rows are declared for {only}; choose one of {', '.join(with_rows)}, or rows' names", file=sys.stderr)
        return 2
    groups = [group for group in GROUPS if any(entry.group == group for entry in chosen)]
    measurements, faults = load(groups)
    if not whole:
        chosen = beside(chosen, measurements, declared)

    def keep(rows: list[Row]) -> None:
        merge(file, groups if whole else (), rows)

    rows = measure(chosen, measurements, faults=faults, conditions=machine(), keep=keep)
    keep(rows)
    if whole:
        discard_finished(rows)
    show(rows)
    failed = sum(not row.ok for row in rows)
    print(f"{file}: {len(rows)} rows, {failed} not ok")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
