"""Where the bench keeps what it makes: all of it below build/bench/, which `make clean` deletes."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "build" / "bench"
RESULTS = ROOT / "build" / "bench.json"
