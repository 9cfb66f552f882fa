"""One step from its inputs to a committed artifact, with real worker processes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import (
    BadInputError,
    CorruptArtifactError,
    GateFailedError,
    MediusError,
    ObjectMissingError,
    StaleInputError,
    TransientStoreError,
    WorkerFailedError,
    WorkerInterruptedError,
)
from tasks.artifacts.manifest import MAIN_SHARD
from tasks.artifacts.verify import find_damage
from tasks.runtime.declare import Step
from tasks.runtime.execute import Outcome, RunContext, execute
from tasks.runtime.gates import accept, acceptance_reason
from tasks.runtime.state import step_state
from tasks.worker.spec import Event
from tests.runtime.conftest import Logs
from tests.runtime.errand import errand

FULL = "OSError: [Errno 28] No space left on device"


def test_a_step_is_made_once(context: RunContext, launches: Logs, events: list[Event]) -> None:
    step = errand("a")
    made = execute(step, context)
    assert not made.ref.reused
    assert made.manifest.metrics == {"length": 1, "resumed_at": 0}
    assert made.ref.digest == made.manifest.digest
    assert find_damage(Artifact(context.store, step.directory), made.manifest) == []
    again = execute(step, context)
    assert again.ref == made.ref.model_copy(update={"reused": True})
    assert again.manifest == made.manifest
    assert len(launches(step)) == 1
    assert [event.message for event in events if event.kind == "receipt"] == [MAIN_SHARD]


def test_runtime_and_gates_are_no_part_of_the_key(context: RunContext, launches: Logs) -> None:
    execute(errand("a"), context)
    other = errand("a", threads=2, retries=0, salt="x", max_length=9)
    assert execute(other, context).ref.reused
    assert len(launches(other)) == 1


def test_nothing_stays_of_a_launch(context: RunContext) -> None:
    step = errand("a")
    execute(step, context)
    assert not [path for path in context.scratch.rglob("*") if path.is_file()]
    assert not context.store.exists(f"{step.directory}/lease.json")


def test_the_manifest_says_how_it_was_made(context: RunContext) -> None:
    context.flow_run = "run-1"
    source = errand("a", label="source")
    step = errand("b", inputs={"source": source}, threads=2)
    execute(source, context)
    manifest = execute(step, context).manifest
    assert manifest.provenance.flow_run == "run-1"
    assert manifest.provenance.attempts == 1
    assert manifest.provenance.runtime["threads"] == 2
    assert manifest.provenance.versions["python"].startswith("3.")
    record = manifest.inputs["source"]
    assert (record.key, record.directory) == (source.key, source.directory)
    text = manifest.model_dump_json(include={"objects", "recipe", "digest"})
    assert str(Path.cwd()) not in text
    assert str(context.scratch) not in text


def test_what_a_run_has_found_passed_is_not_read_again(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    source = errand("a", label="source", max_length=9)
    execute(source, context)
    step = errand("b", label="second", inputs={"source": source})
    read: list[str] = []
    get = context.store.get
    monkeypatch.setattr(context.store, "get", lambda path: read.append(path) or get(path))
    execute(step, context)
    assert f"{step.directory}/manifest.json" in read
    assert not [path for path in read if path.startswith(source.directory)]
    # A run of its own knows nothing yet.
    execute(errand("c", inputs={"source": source}), replace(context, passed={}))
    assert {f"{source.directory}/manifest.json", f"{source.directory}/verdict.json"} <= set(read)


def test_an_input_that_is_not_there_is_named(context: RunContext) -> None:
    step = errand("b", label="second", inputs={"source": errand("a", label="first")})
    with pytest.raises(BadInputError, match=r"second needs first \(source\), which is not finished"):
        execute(step, context)


def remove(context: RunContext, directory: str) -> None:
    """What the messages tell a user to delete."""
    artifact = Artifact(context.store, directory)
    context.store.delete(artifact.path("manifest.json"))
    for entry in list(context.store.list(artifact.path("shards"))):
        context.store.delete(entry.path)


def test_other_input_bytes_make_a_finished_step_stale(context: RunContext, launches: Logs) -> None:
    source = errand("a", label="source")
    step = errand("b", label="second", inputs={"source": source})
    execute(source, context)
    before = execute(step, context)
    remove(context, source.directory)
    rebuilt = errand("a", label="source", salt="another machine")
    assert rebuilt.key == source.key
    execute(rebuilt, context)
    with pytest.raises(StaleInputError, match=r"was made from source [0-9a-f]{12}….*delete .*manifest\.json") as caught:
        execute(step, context)
    assert caught.value.exit_code == 2
    assert step_state(step, context.store).state == "stale"
    remove(context, step.directory)
    after = execute(step, context)
    assert after.manifest.inputs["source"].digest != before.manifest.inputs["source"].digest
    assert len(launches(step)) == 2


def test_shards_of_other_input_bytes_are_not_added_to(context: RunContext) -> None:
    source = errand("a", label="source")
    step = errand("b", inputs={"source": source}, behaviour="shards")
    execute(source, context)
    execute(step, context)
    for name in ("manifest.json", "shards/main.json", "shards/00001.json"):
        context.store.delete(f"{step.directory}/{name}")
    remove(context, source.directory)
    execute(errand("a", label="source", salt="another machine"), context)
    with pytest.raises(StaleInputError, match=r"has the shard 00000 of other inputs.*delete .*/shards"):
        execute(step, context)
    remove(context, step.directory)
    assert not execute(step, context).ref.reused


def test_equal_input_bytes_made_anew_change_nothing(context: RunContext) -> None:
    source = errand("a", label="source")
    step = errand("b", inputs={"source": source})
    execute(source, context)
    execute(step, context)
    remove(context, source.directory)
    execute(source, context)
    assert execute(step, context).ref.reused


def test_a_failed_gate_keeps_the_result_and_stops_its_consumers(context: RunContext, launches: Logs) -> None:
    source = errand("too long", label="source", max_length=3)
    step = errand("b", inputs={"source": source})
    with pytest.raises(GateFailedError, match=r"source: gate max_length wants <= 3, the value is 8 .*medius accept"):
        execute(source, context)
    artifact = Artifact(context.store, source.directory)
    assert artifact.manifest() is not None
    assert step_state(source, context.store).state == "gate failed"
    with pytest.raises(GateFailedError, match="failed its gate max_length"):
        execute(step, context)
    with pytest.raises(BadInputError, match="no failed gate 'length'; failed are: max_length"):
        accept(artifact, "length", "typo")
    with pytest.raises(BadInputError, match="needs a reason"):
        accept(artifact, "max_length", "  ")
    accept(artifact, "max_length", "looked at it")
    manifest = artifact.manifest()
    assert manifest is not None
    assert acceptance_reason(artifact, "max_length", manifest.digest) == "looked at it"
    assert acceptance_reason(artifact, "max_length", "other bytes") is None
    assert execute(source, context).ref.reused
    assert not execute(step, context).ref.reused
    assert len(launches(source)) == 1, "a verdict costs no second launch"


def test_an_acceptance_is_of_these_bytes_alone(context: RunContext) -> None:
    source = errand("too long", label="source", max_length=3)
    artifact = Artifact(context.store, source.directory)
    with pytest.raises(GateFailedError):
        execute(source, context)
    accept(artifact, "max_length", "looked at it")
    execute(source, context)
    remove(context, source.directory)
    with pytest.raises(GateFailedError, match="max_length"):
        execute(errand("too long", label="source", max_length=3, salt="another machine"), context)


def test_another_threshold_judges_the_finished_result_anew(context: RunContext, launches: Logs) -> None:
    with pytest.raises(GateFailedError):
        execute(errand("too long", max_length=3), context)
    relaxed = errand("too long", max_length=20)
    outcome = execute(relaxed, context)
    assert [(gate.gate, gate.passed, gate.value) for gate in outcome.gates] == [("max_length", True, 8)]
    consumer = errand("b", label="consumer", inputs={"source": relaxed})
    assert not execute(consumer, context).ref.reused
    assert len(launches(relaxed)) == 1


@pytest.mark.parametrize(
    ("behaviour", "error", "retryable", "message"),
    [
        ("bad_input", BadInputError, False, r"^errand: the recipe asks for the impossible; ask for less$"),
        ("preempted", WorkerInterruptedError, True, "was preempted and saved its state; a retry goes on"),
        ("transient", TransientStoreError, True, r"does not answer \(503\)"),
        ("refused", WorkerFailedError, False, r"^errand: the disk of /store is full; free some .* \(log: .*\)$"),
        ("killed", WorkerInterruptedError, True, r"was killed \(exit -9\).*last checkpoint or shard"),
        ("out_of_memory", WorkerFailedError, False, "ran out of memory; lower its micro-batch"),
        ("silent", WorkerFailedError, False, "exit code 3"),
        ("no_receipt", WorkerFailedError, False, "exit code 0"),
    ],
)
def test_how_a_worker_ends_says_whether_to_try_again(
    context: RunContext, behaviour: str, error: type[MediusError], retryable: bool, message: str
) -> None:
    step = errand("a", behaviour=behaviour)
    with pytest.raises(error, match=message) as caught:
        execute(step, context)
    assert type(caught.value) is error
    assert caught.value.retryable is retryable
    assert Artifact(context.store, step.directory).manifest() is None
    assert not context.store.exists(f"{step.directory}/lease.json")
    assert not [path for path in context.scratch.rglob("*") if path.is_file()]


def test_a_sentence_survives_the_launcher(context: RunContext) -> None:
    """torchrun prints a long report of its own after what a rank said."""
    with pytest.raises(BadInputError, match=r"^errand: the recipe asks for the impossible; ask for less$"):
        execute(errand("a", behaviour="bad_input", launcher="torchrun", num_processes=2), context)


LOST_PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:39862. GLHF!"
CUT_OFF_PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error [10.99.7.3]:54929: Connection timed out."
LOST_NCCL_PEER = "DistBackendError: NCCL error in: NCCLUtils.cpp:77, unhandled system error (run with NCCL_DEBUG=INFO)"


def report(*exit_codes: int) -> str:
    """What torchrun prints of the ranks that failed: more lines than are shown."""
    failures = []
    for rank, code in enumerate(exit_codes):
        told = f"Signal {-code} (SIGKILL) received by PID 18044" if code < 0 else "To enable traceback see: elastic"
        failures.append(f"[{rank}]:\n  rank      : {rank}\n  exitcode  : {code}\n  traceback : {told}")
    return "\n".join(["=" * 60, *["  frame"] * 60, "Failures:", *failures, "=" * 60])


@pytest.mark.parametrize(
    ("end", "printed", "error", "message"),
    [
        ("KeyError: 'row'", f"out of memory? {LOST_PEER}", WorkerFailedError, "^errand: KeyError: 'row'\nIts worker"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB", report(1, 1) + LOST_PEER, WorkerFailedError,
         "^errand: torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\nIt ran out of memory; lower its micro-"),
        (LOST_PEER, report(1, 1), WorkerInterruptedError, "it lost one of its processes"),
        (CUT_OFF_PEER, report(1, 1), WorkerInterruptedError, "it lost one of its processes"),
        (LOST_NCCL_PEER, report(1, -9), WorkerInterruptedError, "or a connection: DistBackendError"),
        (LOST_NCCL_PEER, report(1, 1), WorkerFailedError, "^errand: DistBackendError: NCCL"),
        ("", "a rank exits with return code = -9", WorkerInterruptedError, "its process was killed"),
    ],
)  # fmt: skip
def test_the_first_failed_ranks_sentence_decides_and_not_what_its_peers_say(
    context: RunContext, end: str, printed: str, error: type[MediusError], message: str
) -> None:
    """A rank that is killed leaves no sentence, so that the first one is of a rank that lost its peer."""
    with pytest.raises(error, match=message) as caught:
        execute(errand("a", behaviour="recorded", end=end, printed=printed), context)
    assert type(caught.value) is error


@pytest.mark.parametrize(("end", "printed"), [(FULL, ""), ("", f"Traceback\n  x = 1\n{FULL}")])
def test_a_full_disk_is_one_sentence(context: RunContext, end: str, printed: str) -> None:
    """A worker on a full disk may not even be able to leave its last sentence."""
    with pytest.raises(WorkerFailedError, match=r"^errand: No space left on device; make room on the disk") as caught:
        execute(errand("a", behaviour="recorded", end=end, printed=printed), context)
    assert len(str(caught.value).splitlines()) == 1
    assert not caught.value.retryable


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        ("one_raises", WorkerFailedError, "^errand: KeyError: 'row 0a1b2c'\n"),
        ("one_killed", WorkerInterruptedError, "it lost one of its processes"),
    ],
)
def test_one_of_two_ranks_fails(context: RunContext, behaviour: str, error: type[MediusError], message: str) -> None:
    with pytest.raises(error, match=message):
        execute(errand("a", behaviour=behaviour, launcher="torchrun", num_processes=2), context)


def test_a_traceback_reaches_the_user_with_the_last_lines_before_it(context: RunContext, launches: Logs) -> None:
    step = errand("a", behaviour="traceback")
    with pytest.raises(WorkerFailedError) as caught:
        execute(step, context)
    text = str(caught.value)
    assert "KeyError: 'the cause'" in text
    assert "line 199" in text
    assert "line 100" not in text, "fifty lines, not all"
    assert "Mend the cause and run the same command again" in text
    assert f"{step.directory}/logs" in text
    (log,) = launches(step)
    assert "line 0\n" in log, "the store keeps the whole log"
    # The next launch of the same key, without the fault.
    assert not execute(errand("a"), context).ref.reused


def test_a_finished_worker_whose_commit_was_lost_is_not_launched_again(context: RunContext, launches: Logs) -> None:
    step = errand("a", behaviour="shards")
    before = execute(step, context)
    context.store.delete(f"{step.directory}/manifest.json")
    after = execute(step, context)
    assert len(launches(step)) == 1
    assert after.manifest.digest == before.manifest.digest
    assert after.manifest.metrics == before.manifest.metrics
    assert [entry.name for entry in after.manifest.objects] == ["00000/part", "00001/part", "00002/part", "said.json"]


def test_finished_shards_are_not_made_again(context: RunContext) -> None:
    step = errand("a", behaviour="shards")
    before = execute(step, context).manifest
    for name in ("manifest.json", "shards/main.json", "shards/00001.json"):
        context.store.delete(f"{step.directory}/{name}")
    after = execute(step, context).manifest
    assert after.digest == before.digest
    changed = [a.name for a, b in zip(after.objects, before.objects, strict=True) if a.path != b.path]
    assert changed == ["00001/part", "said.json"]
    assert after.provenance.attempts == 2


def test_an_object_that_vanished_before_the_commit_is_named(context: RunContext) -> None:
    step = errand("a", behaviour="shards")
    manifest = execute(step, context).manifest
    context.store.delete(f"{step.directory}/manifest.json")
    gone = manifest.object("00001/part")
    assert gone is not None
    context.store.delete(f"{step.directory}/{gone.path}")
    with pytest.raises(ObjectMissingError, match=rf"{gone.path} is missing.*delete the receipt"):
        execute(step, context)
    assert Artifact(context.store, step.directory).manifest() is None
    remove(context, step.directory)
    assert execute(step, context).manifest.digest == manifest.digest


def test_a_torn_manifest_is_no_artifact_and_no_crash(context: RunContext) -> None:
    step = errand("a")
    execute(step, context)
    context.store.put(f"{step.directory}/manifest.json", b'{"record": 1, "sta')
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        execute(step, context)


@pytest.mark.parametrize("name", ["manifest.json", "verdict.json", "shards/main.json", "acceptances/max_length.json"])
def test_a_record_of_another_version_is_one_sentence(context: RunContext, name: str) -> None:
    step = errand("too long", max_length=3)
    with pytest.raises(GateFailedError):
        execute(step, context)
    if name.startswith("shards/"):
        context.store.delete(f"{step.directory}/manifest.json")
    path = f"{step.directory}/{name}"
    context.store.put(path, b'{"record": 99, "shape": "unheard of"}')
    # A run judges anew, and writes over a verdict.
    look = (lambda: step_state(step, context.store)) if name == "verdict.json" else (lambda: execute(step, context))
    with pytest.raises(CorruptArtifactError, match=rf"{path} cannot be read, as it was written by another version of"):
        look()


def test_a_lease_of_another_version_is_one_sentence(context: RunContext) -> None:
    step = errand("a")
    context.store.put(f"{step.directory}/lease.json", b'{"holder": "unheard of"}')
    with pytest.raises(CorruptArtifactError, match=r"lease\.json cannot be read, as it was written by another version"):
        step_state(step, context.store)


def test_a_store_that_is_away_does_not_hide_what_the_worker_said(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(path: str) -> bool:
        raise TransientStoreError(f"{path}: the object store does not answer")

    def no_copy(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(context.store, "exists", away)
    monkeypatch.setattr("shutil.copyfile", no_copy)
    with pytest.raises(WorkerFailedError, match="It ran out of memory"):
        execute(errand("a", behaviour="out_of_memory"), context)


def run_twice_at_once(step: Step, context: RunContext) -> None:
    """One of the two makes the artifact, the other one finds it; both have the same."""
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(execute(step, context))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.ref.reused for outcome in outcomes) == [False, True]
    assert sorted(outcome.meanwhile for outcome in outcomes) == [False, True]
    assert not execute(step, context).meanwhile, "it was finished before"
    assert len({outcome.ref.digest for outcome in outcomes}) == 1


def test_two_runs_of_one_key_do_the_work_once(context: RunContext, launches: Logs, events: list[Event]) -> None:
    # Long enough for the second to say that it waits, which it does after a second.
    step = errand("a", behaviour="work", steps=50)
    run_twice_at_once(step, context)
    assert len(launches(step)) == 1
    assert any("waiting" in event.message and "is held by" in event.message for event in events)


def test_runs_of_a_shared_stage_work_side_by_side_and_one_commits(
    context: RunContext, launches: Logs, events: list[Event]
) -> None:
    step = errand("a", behaviour="work", steps=50)
    step = replace(step, stage=replace(step.stage, shared=True))
    run_twice_at_once(step, context)
    assert len(launches(step)) == 2
    assert not [path for path in context.scratch.rglob("*") if path.is_file()]
    # Neither waited for the other's launch: the steps of the two alternate.
    numbers = [event.done or 0 for event in events if event.kind == "progress"]
    assert len(numbers) == 100
    assert numbers != sorted(numbers[:50]) * 2


def test_what_a_worker_says_reaches_the_watcher_in_order(context: RunContext, events: list[Event]) -> None:
    execute(errand("a", behaviour="work", steps=5), context)
    progress = [(event.done, event.total, event.unit) for event in events if event.kind == "progress"]
    # Nought is the default and is not written, so it comes back as nothing said.
    assert [(done or 0, total, unit) for done, total, unit in progress] == [(step, 5, "steps") for step in range(5)]


def test_a_worker_also_runs_by_hand(context: RunContext, tmp_path: Path) -> None:
    """With the spec alone and no runtime around it: what the README tells people who debug a stage."""
    step = errand("by hand")
    spec = {
        "stage": "errand",
        "label": "errand",
        "key": step.key,
        "attempt": "12345678",
        "store": context.store.uri,
        "directory": step.directory,
        "scratch": str(tmp_path / "hand"),
        "input_cache": str(tmp_path / "inputs"),
        "recipe": step.config.recipe.model_dump(),
        "runtime": step.config.runtime.model_dump(),
        "inputs": {},
    }
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    subprocess.run(
        [sys.executable, "-m", step.stage.worker, "--spec", str(file)], check=True, stdin=subprocess.DEVNULL, timeout=60
    )
    assert list(Artifact(context.store, step.directory).receipts()) == [MAIN_SHARD]
