"""`medius gc` by the command: a dry run by default; profiles, runs and living launches keep what is theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.pipeline import build
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.runs import RunRecord, RunStep, write_run
from tasks.artifacts.store import open_store
from tasks.runtime.execute import RunContext, execute
from tasks.runtime.launch_folder import scratch_folder
from tests.flows.conftest import Medius

EDIT = "fine_tuning.evolve.recipe.source.count=21"


@pytest.fixture(autouse=True)
def _micro_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of configs/ only micro: to read the sources of all profiles takes long on a busy machine."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "micro.yaml").write_bytes((CONFIGS / "micro.yaml").read_bytes())
    monkeypatch.setattr("flows.collection.CONFIGS", configs)


@pytest.fixture
def two_recipes(tmp_path: Path) -> Path:
    """A store with one stage of micro as it is, and one of an edited micro."""
    store = open_store(str(tmp_path / "store"))
    for overrides, label in (((), "model-base"), ((EDIT,), "evolve")):
        steps = {step.label: step for step in build(load_profile("micro", overrides))}
        execute(steps[label], RunContext(store=store, scratch=tmp_path / "elsewhere"))
    return tmp_path / "store"


def test_gc_lists_and_removes_only_with_delete(medius: Medius, two_recipes: Path, tmp_path: Path) -> None:
    arguments = ("gc", "--store", str(two_recipes), "--grace-hours", "0")
    edited = {step.label: step for step in build(load_profile("micro", (EDIT,)))}["evolve"].directory
    kept = {step.label: step for step in build(load_profile("micro"))}["model-base"].directory

    assert medius("gc", "--store", str(two_recipes)).out.startswith("0 objects"), "all of it is younger than a day"
    said = medius(*arguments)
    assert said.code == 0
    assert edited in said.out
    assert "nothing was removed; add --delete" in said.out
    assert (two_recipes / edited / "manifest.json").exists()

    profile = tmp_path / "edited.yaml"
    text = (CONFIGS / "micro.yaml").read_text()
    assert text.count("count: 20, seed: 2") == 1
    profile.write_text(text.replace("count: 20, seed: 2", "count: 21, seed: 2"))
    assert edited not in medius(*arguments, "--profile", str(profile)).out

    store = open_store(str(two_recipes))
    step = RunStep(label="evolve", stage="evolve", key="k", directory=edited)
    record = RunRecord(run="r", profile="ours", config={}, steps=(step,), started="2001-01-01T00:00:00Z")
    write_run(store, record)
    assert edited not in medius(*arguments).out, "the last run of a profile keeps what it used, however old"
    write_run(store, record.model_copy(update={"run": "s", "steps": (), "started": "2002-01-01T00:00:00Z"}))
    assert edited in medius(*arguments).out

    said = medius(*arguments, "--delete")
    assert said.code == 0
    assert " removed from " in said.out
    assert not list((two_recipes / edited).rglob("*.json"))
    assert (two_recipes / kept / "manifest.json").exists()
    assert medius(*arguments).out.startswith("0 objects")


def test_scratch_of_killed_launches_goes_and_of_living_ones_stays(
    medius: Medius, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    monkeypatch.setattr("flows.collection.SCRATCH", scratch)
    (scratch / "dead" / "1234").mkdir(parents=True)
    (scratch / "dead" / "1234.lock").touch()
    (scratch / "inputs" / "model").mkdir(parents=True)
    store = ("--store", str(tmp_path / "store"))
    with scratch_folder(scratch, "living", "5678") as living:
        assert str(scratch / "dead" / "1234") in medius("gc", *store).out
        assert (scratch / "dead" / "1234").exists()
        assert str(living) not in medius("gc", *store, "--delete").out
        assert living.exists()
    assert not (scratch / "dead").exists()
    assert (scratch / "inputs" / "model").exists()
