"""A run that cannot fit is refused before it begins; one whose sizes are not known is not."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import pytest

from flows import opened, room
from flows.costs import CostOptions, cost_of
from flows.dag import build
from flows.dispatch import made_here
from flows.opened import open_run
from flows.profiles import load_profile
from flows.room import require_room
from flows.run_options import RunOptions
from flows.single_stage import single_stage
from tasks.artifacts.errors import BadInputError, InterruptedRunError
from tasks.artifacts.runs import all_runs
from tasks.artifacts.s3_store import S3Store
from tasks.artifacts.store import Store, open_store
from tasks.planning.forecast import Forecast
from tasks.runtime.declare import Step
from tasks.worker.input_cache import INPUT_CACHE, input_folder

Usage = namedtuple("Usage", "total used free")
Free = Callable[[float], None]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Free:
    """free(bytes) leaves so much on every disk; the working folder is a new one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(INPUT_CACHE, raising=False)
    return lambda size: monkeypatch.setattr("shutil.disk_usage", lambda _folder: Usage(10, 10, size))


@pytest.fixture
def steps(tmp_path: Path) -> list[Step]:
    return build(load_profile("micro", store=str(tmp_path / "store")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def remote(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose objects are no files of this machine, as S3's are not; nothing of it is moved here."""
    monkeypatch.setattr(store, "local_path", lambda path: S3Store.local_path(store, path))  # type: ignore[arg-type]
    return store


def forecasts(steps: Sequence[Step], store: Store) -> dict[str, Forecast]:
    """What is left of each step, by label."""
    return {cost.label: cost.left for cost in cost_of(steps, store, 2, CostOptions.read()).steps}


def labelled(steps: Sequence[Step], label: str) -> Step:
    [step] = [step for step in steps if step.label == label]
    return step


def fits_exactly(needed: float, free: Free, steps: Sequence[Step], here: Sequence[Step], store: Store) -> bool:
    """Whether a disk with `needed` bytes is enough, and one with a thousandth less is not."""
    free(needed)
    require_room(steps, here, store, 2, Path("scratch").resolve())
    free(0.999 * needed)
    with pytest.raises(BadInputError, match="is forecast to need"):
        require_room(steps, here, store, 2, Path("scratch").resolve())
    return True


def test_too_little_room_is_one_sentence_before_anything_is_computed(tmp_path: Path, free: Free) -> None:
    free(1000)
    profile = load_profile("micro", store=str(tmp_path / "store"))
    with (
        pytest.raises(BadInputError, match=rf"to need .* on the disk of {tmp_path}\S*, which has 1 kB free") as caught,
        open_run(profile, build(profile)),
    ):
        pytest.fail("it began")
    assert len(str(caught.value).splitlines()) == 1
    assert all_runs(open_store(profile.store)) == []


def test_it_begins_all_the_same_where_that_is_set(tmp_path: Path, free: Free) -> None:
    free(1000)
    profile = load_profile("micro", ["require_room=false"], store=str(tmp_path / "store"))
    with open_run(profile, build(profile)):
        pass
    [record] = all_runs(open_store(profile.store))
    assert record.state == "finished"


def test_a_local_store_keeps_results_and_the_checkpoints_of_one_training_at_a_time(
    free: Free, steps: list[Step], store: Store
) -> None:
    left = forecasts(steps, store)
    training = left["distill-llama"].checkpoints + left["distill-llama"].scratch
    results = sum(forecast.stored for forecast in left.values())
    free(results + 2 * training)
    require_room(steps, steps, store, 2, Path("scratch").resolve())
    free(results)
    with pytest.raises(BadInputError, match="--store"):
        require_room(steps, steps, store, 2, Path("scratch").resolve())


def test_a_shared_dump_needs_a_shard_of_scratch_and_its_inputs(free: Free, steps: list[Step], remote: Store) -> None:
    dump = labelled(steps, "logits-llama")
    assert dump.stage.shared
    left = forecasts(steps, remote)
    inputs = left["model-llama-teacher"].stored + left["corpus-llama"].stored
    shard = left[dump.label].scratch
    assert 0 < shard < left[dump.label].stored / 4, "each shard is removed when it is in the store"
    assert fits_exactly(shard + inputs, free, steps, [dump], remote)


def test_a_training_reads_logits_in_place_and_holds_one_checkpoint(
    free: Free, steps: list[Step], remote: Store
) -> None:
    training = labelled(steps, "distill-qwen")
    left = forecasts(steps, remote)
    assert left["distill-qwen"].scratch > left["distill-qwen"].stored, "the optimiser's state is larger than the model"
    assert fits_exactly(left["distill-qwen"].scratch + left["model-base"].stored, free, steps, [training], remote)


def test_an_input_that_is_here_already_is_not_fetched_again(
    free: Free, steps: list[Step], remote: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = labelled(steps, "distill-qwen")
    left = forecasts(steps, remote)
    cached = input_folder("scratch/inputs", labelled(steps, "model-base").key, "")
    cached.mkdir(parents=True)
    (cached / "model.safetensors").write_bytes(bytes(int(left["model-base"].stored)))
    assert fits_exactly(left["distill-qwen"].scratch, free, steps, [training], remote)


def test_stages_on_other_pools_are_not_of_this_host(free: Free, remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [f"{where}.runtime.pool=gpu" for where in ("branches.qwen.dump_logits", "branches.qwen.distill")]
    steps = build(load_profile("micro", pools, store=remote.uri), "distill-qwen")
    left, scratch = forecasts(steps, remote), Path("scratch").resolve()
    # What is left to this host are the two models, which are stored from where they lie, and the corpus.
    free(left["corpus-qwen"].scratch)
    with pytest.raises(BadInputError, match=r"medius gc --delete.*MEDIUS_INPUT_CACHE.*--set require_room=false"):
        require_room(steps, made_here(steps), remote, 2, scratch)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of a deployment")
    require_room(steps, made_here(steps), remote, 2, scratch)


def test_a_single_stage_needs_what_that_stage_does(
    free: Free, steps: list[Step], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def begin(step: Step, *_more: object) -> None:
        begun.append(step.label)
        raise InterruptedRunError("it was let in")

    monkeypatch.setattr("flows.single_stage.submit_stage", begin)
    monkeypatch.setattr(opened, "STOP", Event())
    alone, options = forecasts(steps, store)["corpus-sft"], RunOptions(store=store.uri)
    free(alone.stored + alone.scratch)
    with pytest.raises(InterruptedRunError, match="it was let in"):
        single_stage.fn("corpus-sft", "micro", options=options)
    with pytest.raises(BadInputError, match="is forecast to need"):
        single_stage.fn("logits-llama", "micro", options=options)
    assert begun == ["corpus-sft"]


def test_what_cannot_be_forecast_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: Free, steps: list[Step], store: Store
) -> None:
    asked = []

    def unknown(*arguments: object) -> None:
        asked.append(arguments)
        raise BadInputError("no shape")

    monkeypatch.setattr(room, "cost_of", unknown)
    free(0)
    require_room(steps, steps, store, 2, tmp_path)
    assert len(asked) == 1, "a forecast was tried, and its failure refuses nothing"
    for step in steps:
        store.put(f"{step.directory}/manifest.json", b"{}")
    require_room(steps, steps, store, 2, tmp_path)
    assert len(asked) == 1, "where all is finished nothing is forecast"
