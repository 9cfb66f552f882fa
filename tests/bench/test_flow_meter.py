"""The clock beside a run: every launch has its time, by the very call with which a step launches its worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import pipeline
from tasks.artifacts.store import Store
from tasks.runtime import execute
from tasks.runtime.execute import RunContext
from tests.bench.flow_meter import Metered, meter
from tests.bench.paths import ROOT
from tests.runtime.errand import errand


def test_a_launch_is_metered(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # `meter` replaces both for the rest of a process; this one goes on with other tests.
    monkeypatch.setattr(execute, "launch", execute.launch)
    monkeypatch.setattr(pipeline, "distillation", pipeline.distillation)
    metered = Metered()
    meter(metered)
    execute.execute(errand("a", behaviour="work", steps=10), RunContext(store=store, scratch=tmp_path / "scratch"))
    [seconds] = metered.workers.values()
    assert seconds >= 0.5, "ten steps of 50 ms"
