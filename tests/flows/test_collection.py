"""`medius gc` by the command: a dry run by default; profiles, runs and living launches keep what is theirs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.collection import collect
from flows.dag import build
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.lease import Lease
from tasks.artifacts.manifest import MAIN_SHARD, InputRecord
from tasks.artifacts.runs import RunKind, RunRecord, RunStep, all_runs, write_run
from tasks.artifacts.s3_store import S3Store
from tasks.artifacts.store import open_store
from tasks.runtime.execute import RunContext, execute
from tasks.runtime.launch_folder import scratch_folder
from tasks.worker.input_cache import INPUT_CACHE
from tasks.worker.spec import WorkerSpec
from tests.artifacts.records import manifest_of, receipt_of
from tests.flows.conftest import Medius
from tests.seaweed import BUCKET, SeaweedServer

EDIT = "fine_tuning.evolve.recipe.source.count=21"


@pytest.fixture(autouse=True)
def _micro_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of configs/ only micro: to read the sources of all profiles takes long on a busy machine."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "micro.yaml").write_bytes((CONFIGS / "micro.yaml").read_bytes())
    monkeypatch.setattr("flows.retention.CONFIGS", configs)


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
    record = RunRecord(
        run="r", profile="ours", config={}, steps=(step,), started="2001-01-01T00:00:00Z", state="finished"
    )
    write_run(store, record)
    assert edited not in medius(*arguments).out, "the last run of a profile keeps what it used, however old"
    later = record.model_copy(update={"run": "s", "steps": (), "started": "2002-01-01T00:00:00Z"})
    write_run(store, later.model_copy(update={"kind": RunKind(smoke=True)}))
    assert edited not in medius(*arguments).out, "a smoke run takes no place of the real one"
    write_run(store, later)
    said = medius(*arguments)
    assert edited in said.out
    assert "runs/r.json: of ours, began 2001" in said.out
    assert "runs/s.json" not in said.out

    # A run that began a moment before the collection is taken for one that came back to it.
    os.utime(two_recipes / "runs" / "r.json", (0, 0))
    said = medius(*arguments, "--delete")
    assert said.code == 0
    assert " removed from " in said.out
    assert not list((two_recipes / edited).rglob("*.json"))
    assert [run.run for run in all_runs(store)] == ["s"]
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


def test_a_profile_that_does_not_load_blocks_nothing_and_keeps_what_its_runs_name(
    medius: Medius, two_recipes: Path, tmp_path: Path
) -> None:
    edited = {step.label: step for step in build(load_profile("micro", (EDIT,)))}["evolve"].directory
    (tmp_path / "configs" / "broken.yaml").write_text("name: ours\nstore: .medius/store\n")
    store = open_store(str(two_recipes))
    step = RunStep(label="evolve", stage="evolve", key="k", directory=edited)
    old = RunRecord(run="r", profile="ours", config={}, steps=(step,), started="2001-01-01T00:00:00Z", state="failed")
    write_run(store, old)
    write_run(store, old.model_copy(update={"run": "s", "steps": (), "started": "2002-01-01T00:00:00Z"}))
    said = medius("gc", "--store", str(two_recipes), "--grace-hours", "0", "--delete")
    assert said.code == 0
    assert "broken.yaml: models: Field required" in said.out
    assert "what all recorded runs of ours made or used is kept" in said.out
    assert (two_recipes / edited / "manifest.json").exists()
    assert medius("gc", "--store", str(two_recipes), "--profile", str(tmp_path / "configs" / "broken.yaml")).code == 2


class WatchedConsole(Console):
    """Does something once, when the first line is printed."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__(file=io.StringIO())
        self.then: Callable[[], None] | None = then

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        if self.then is not None:
            then, self.then = self.then, None
            then()


def test_what_is_found_is_told_at_once_and_a_run_that_begins_meanwhile_keeps_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(str(tmp_path / "store"))
    first, second = (f"artifacts/models/{name}-0123456789abcdef" for name in "ab")
    for folder in (first, second):
        store.put(f"{folder}/manifest.json", b"{}")
    step = RunStep(label="b", stage="models", key="k", directory=second)

    def begin() -> None:
        assert store.exists(f"{second}/manifest.json"), "the first line comes before the second removal"
        write_run(store, RunRecord(run="r", profile="p", config={}, steps=(step,), started="2001-01-01T00:00:00Z"))

    console = WatchedConsole(begin)
    collect(store, console, (), 30, 0, delete=True)
    assert console.then is None
    assert not store.exists(f"{first}/manifest.json")
    assert store.exists(f"{second}/manifest.json")


def test_what_rounds_to_a_thousand_is_one_of_the_next_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store, console = open_store(str(tmp_path / "store")), Console(file=io.StringIO(), width=200)
    store.put("artifacts/models/a-0123456789abcdef/manifest.json", b" " * 999_600)
    collect(store, console, (), 30, 0, delete=False)
    assert isinstance(console.file, io.StringIO)
    assert "1 objects, 1 MB, could be removed" in console.file.getvalue()


def test_uploads_that_nobody_finished_go_but_not_those_of_a_living_run(
    medius: Medius, server: SeaweedServer, tmp_path: Path
) -> None:
    store = S3Store(f"s3://{BUCKET}/here")
    folder = "artifacts/models/m-0123456789abcdef"
    paths = [f"{folder}/data/main-aaaaaaaa/weights", "elsewhere/file"]
    for path in paths:
        store.fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=store.key(path))
    other = S3Store(f"s3://{BUCKET}/here-too")
    other.fs.call_s3("create_multipart_upload", Bucket=BUCKET, Key=other.key("theirs"))
    assert sorted(upload.path for upload in store.unfinished_uploads()) == paths
    gc = ("gc", "--store", store.uri, "--grace-hours", "0", "--delete")
    assert "never finished" not in medius(*gc[:3]).out, "they are younger than a day"
    time.sleep(1.1)  # The server tells whole seconds.
    with_lease = Lease(store, f"{folder}/lease.json", 60)
    with_lease.acquire(0)
    with with_lease:
        assert "elsewhere/file: an upload that its writer never finished" in medius(*gc).out
        assert [upload.path for upload in store.unfinished_uploads()] == paths[:1]
    medius(*gc)
    assert list(store.unfinished_uploads()) == []
    assert [upload.path for upload in other.unfinished_uploads()] == ["theirs"]


def test_half_written_files_of_a_folder_go_and_locks_of_living_objects_stay(medius: Medius, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    etag = store.create("kept/lease.json", b"1")
    store.replace("kept/lease.json", b"2", etag)
    half, stale = tmp_path / "store" / "kept" / ".tmp-0123", tmp_path / "store" / "kept" / ".tmp-lock-gone.json"
    for file in (half, stale):
        file.touch()
    gc = ("gc", "--store", store.uri, "--grace-hours", "0")
    assert "kept/.tmp-0123: an upload" in medius(*gc).out
    assert half.exists()
    medius(*gc, "--delete")
    assert not half.exists()
    assert not stale.exists()
    assert (tmp_path / "store" / "kept" / ".tmp-lock-lease.json").exists()


READER = """
import sys
from tasks.worker.job import Job
from tasks.worker.spec import WorkerSpec
job = Job(WorkerSpec.model_validate_json(sys.argv[1]))
print(job.input("model").directory(), flush=True)
sys.stdin.read()
"""


@contextmanager
def reading(artifact: Artifact, folder: Path) -> Iterator[Path]:
    """A process that has fetched the artifact as an input, and has it in use while the block runs."""
    manifest = artifact.manifest()
    assert manifest is not None
    record = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
    spec = WorkerSpec(
        stage="sft", label="sft", key="f" * 64, attempt="1", store=artifact.store.uri, directory="artifacts/sft/s",
        scratch=str(folder / "launch"), input_cache=str(folder / "inputs"), recipe={}, runtime={},
        inputs={"model": record},
    )  # fmt: skip
    command = [sys.executable, "-c", READER, spec.model_dump_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Path(process.stdout.readline().strip())
        process.communicate()


@pytest.mark.parametrize("where", ["scratch", "named"])
def test_fetched_inputs_go_when_nothing_names_or_reads_them(
    medius: Medius, server: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    scratch = tmp_path / "scratch"
    monkeypatch.setattr("flows.collection.SCRATCH", scratch)
    if where == "named":
        monkeypatch.setenv(INPUT_CACHE, str(tmp_path / "disk"))
    store = S3Store(f"s3://{BUCKET}/inputs-{where}")
    needed, other = (Artifact(store, f"artifacts/models/m-{digit * 16}") for digit in "ab")
    for artifact, digit in ((needed, "a"), (other, "b")):
        receipt = artifact.add_shard(receipt_of(artifact, MAIN_SHARD, {"weights": b"w" * 100}))
        artifact.commit(manifest_of(receipt.objects).model_copy(update={"key": digit * 64}))
    step = RunStep(label="m", stage="models", key="k", directory=needed.directory)
    write_run(store, RunRecord(run="r", profile="p", config={}, steps=(step,), started="2001-01-01T00:00:00Z"))
    gc = ("gc", "--store", store.uri, "--grace-hours", "0")
    with reading(needed, scratch) as kept:
        pass
    with reading(other, scratch) as idle:
        assert idle.parent == (tmp_path / "disk" if where == "named" else scratch / "inputs")
        assert str(idle) not in medius(*gc, "--delete").out
        assert (idle / "weights").stat().st_size == 100
    assert str(idle) not in medius(*gc[:3], "--delete").out, "it was read within a day"
    said = medius(*gc).out
    assert f"{idle}: 100 B: an input on this host" in said
    assert str(kept) not in said
    assert idle.exists(), "a dry run"
    assert str(idle) in medius(*gc, "--delete").out
    assert (kept / "weights").exists()
    assert not [path for path in idle.parent.iterdir() if path.name.startswith(idle.name)], "its locks go with it"
