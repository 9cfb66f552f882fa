"""Several processes on one dump: side by side, killed, stopped, and holding one teacher together."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import artifact_key
from tasks.artifacts.manifest import InputRecord
from tasks.artifacts.store import Store, open_store
from tasks.dump_logits.stage import DumpLogitsRuntime
from tasks.dump_logits.tensor_group import Place, check_plan
from tasks.logits.reader import LogitRow
from tasks.worker.job import END_FILE, EXIT_BAD_INPUT, EXIT_PREEMPTED, STOP_FILE, Job
from tasks.worker.spec import WorkerSpec
from tests.conftest import _commit
from tests.dump_logits.conftest import make_model, make_row
from tests.dump_logits.forked_workers import ForkedWorkers, KilledDump, begun, killed_dump, objects_of, undisturbed_dump
from tests.dump_logits.test_dump import all_rows

ROOT = Path(__file__).parents[2]
SpecOf = Callable[..., WorkerSpec]
CUT: dict[str, Any] = {"tensor_parallel": 2, "num_processes": 2, "launcher": "torchrun"}


@pytest.fixture(scope="module")
def workers() -> Iterator[ForkedWorkers]:
    with ForkedWorkers() as running:
        yield running


@pytest.fixture
def spec_of(
    tmp_path: Path,
    store: Store,
    teacher_of: Callable[..., Artifact],
    corpus_of: Callable[..., Artifact],
    recipe_of: Callable[..., dict[str, Any]],
) -> SpecOf:
    """spec_of(label="logits", model=None, **runtime): a new launch of a dump of 60 rows in 12 shards."""
    corpus = corpus_of({"train": [make_row(2 + 7 * seed % 60, seed) for seed in range(50)],
                        "heldout": [make_row(30, 100 + seed) for seed in range(10)]})  # fmt: skip
    teachers: dict[int, Artifact] = {}

    def make(label: str = "logits", model: PreTrainedModel | None = None, **runtime: Any) -> WorkerSpec:
        teacher = teachers.setdefault(id(model), teacher_of(model))
        inputs = {}
        for role, artifact in {"teacher": teacher, "corpus": corpus}.items():
            manifest = artifact.manifest()
            assert manifest is not None
            inputs[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
        recipe = recipe_of(rows_per_shard=5, values="warped")
        key = artifact_key("dump_logits", 1, recipe, {role: record.key for role, record in inputs.items()})
        attempt = uuid.uuid4().hex[:8]
        return WorkerSpec(
            stage="dump_logits", label=label, key=key, attempt=attempt, store=store.uri,
            directory=f"artifacts/dump_logits/{label}-{key[:16]}", scratch=str(tmp_path / "scratch" / attempt),
            input_cache=str(tmp_path / "inputs"), recipe=recipe, inputs=inputs,
            runtime={"tokens_per_batch": 128, "head_chunk_tokens": 16, "device": "cpu"} | runtime,
        )  # fmt: skip

    return make


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("MEDIUS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"MEDIUS_KILL_SEED={seed}")
    return random.Random(seed)


def test_a_dump_killed_at_random_moments_ends_bit_for_bit_as_an_undisturbed_one(
    workers: ForkedWorkers, spec_of: SpecOf, chance: random.Random
) -> None:
    expected, seconds = undisturbed_dump(workers, spec_of("alone"))
    assert len([name for name in expected if name.endswith("/zarr.json") and name.count("/") == 1]) == 13
    found: KilledDump = killed_dump(workers, lambda: spec_of("killed"), 3, chance, seconds)
    print(found.killed_after, found.shards_after)
    assert found.objects == expected
    assert found.twice == []
    spec = spec_of("killed")
    assert list(open_store(spec.store).list(f"{spec.directory}/leases")) == []


def test_launches_side_by_side_make_each_shard_once(workers: ForkedWorkers, spec_of: SpecOf, store: Store) -> None:
    expected, _ = undisturbed_dump(workers, spec_of("alone"))
    together = [workers.start(spec_of("together")) for _ in range(3)]
    for worker in together:
        assert worker.wait(60) == 0, worker.log()
    artifact = Artifact(store, spec_of("together").directory)
    assert objects_of(artifact) == expected
    folders = {entry.path.split("/")[4] for entry in store.list(artifact.path("data"))}
    names = [folder.rpartition("-")[0] for folder in folders]
    # Each launch may finish the artifact; a shard is one launch's.
    assert sorted(name for name in names if name != "main") == sorted(set(artifact.receipts()) - {"main"})
    assert len({folder.rpartition("-")[2] for folder in folders if not folder.startswith("main")}) > 1
    assert list(store.list(artifact.path("leases"))) == []


def test_a_launch_waits_for_what_others_have_and_takes_it_over_when_they_die(
    workers: ForkedWorkers, spec_of: SpecOf, store: Store
) -> None:
    spec = spec_of("waiting")
    artifact = Artifact(store, spec.directory)
    # The first launch is stopped (not killed) while it holds a lease, as a host that hangs.
    first = workers.start(spec)
    assert begun(artifact, first)
    os.kill(first.process, 19)
    second = workers.start(spec_of("waiting"))
    second.wait_until_it_waits(60)
    assert not second.ended
    first.kill()
    assert second.wait(60) == 0, second.log()
    assert len(artifact.receipts()) == 14


def test_a_stop_is_honoured_while_waiting_for_others(workers: ForkedWorkers, spec_of: SpecOf, store: Store) -> None:
    spec = spec_of("stopped")
    artifact = Artifact(store, spec.directory)
    first = workers.start(spec)
    assert begun(artifact, first)
    os.kill(first.process, 19)
    second = workers.start(spec_of("stopped"))
    second.wait_until_it_waits(60)
    (second.scratch / STOP_FILE).touch()
    assert second.wait(5) == EXIT_PREEMPTED
    first.kill()
    assert first.wait(5) == -9


def torchrun(spec: WorkerSpec, count: int) -> subprocess.Popen[bytes]:
    scratch = Path(spec.scratch)
    scratch.mkdir(parents=True)
    (scratch / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    with (scratch / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "-m", "tasks.dump_logits.worker", "--spec", str(scratch / "spec.json")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def require_done(process: subprocess.Popen[bytes], spec: WorkerSpec) -> None:
    assert process.wait(240) == 0, (Path(spec.scratch) / "worker.log").read_text()[-3000:]


def largest_differences(one: LogitRow, two: LogitRow) -> tuple[float, float]:
    """Of the kept mass, and of the KL between the two with what both keep, in nats."""
    mass_P = [np.exp(row.topk_logprobs_PK.astype(np.float64)).sum(1) for row in (one, two)]
    differences = []
    for position in range(len(one.tail_logprob_P)):
        first = dict(zip(one.topk_ids_PK[position].tolist(), one.topk_logprobs_PK[position].tolist(), strict=True))
        second = dict(zip(two.topk_ids_PK[position].tolist(), two.topk_logprobs_PK[position].tolist(), strict=True))
        both = first.keys() & second.keys()
        differences.append(sum(np.exp(first[token]) * (first[token] - second[token]) for token in both))
    return float(np.abs(mass_P[0] - mass_P[1]).max(initial=0)), float(np.abs(differences).max(initial=0))


@pytest.mark.parametrize("kind", ["qwen2", pytest.param("llama tied", marks=pytest.mark.slow)])
def test_a_teacher_over_two_processes_gives_the_same_store(
    kind: str, workers: ForkedWorkers, spec_of: SpecOf, store: Store
) -> None:
    model: PreTrainedModel = make_model(attention_dropout=0.0)
    if kind == "llama tied":
        # Rows and inner size that two processes cannot halve.
        config = LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=49, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                             initializer_range=0.3, tie_word_embeddings=True)  # fmt: skip
        model = LlamaForCausalLM(config).eval()
    undisturbed_dump(workers, spec_of("alone", model))
    spec = spec_of("cut", model, **CUT)
    require_done(torchrun(spec, 2), spec)
    alone, cut = (_commit(Job(spec_of(label, model))) for label in ("alone", "cut"))
    for split in ("train", "heldout"):
        for one, two in zip(all_rows(alone, split), all_rows(cut, split), strict=True):
            assert one.row_id == two.row_id
            mass, divergence = largest_differences(one, two)
            # Stored values have steps of 5e-3 nats; float32 rounding moves a few across one.
            assert mass < 2e-3
            assert divergence < 2e-3
            assert np.abs(one.gold_logprob_P - two.gold_logprob_P).max(initial=0) < 5e-3
    manifest = cut.manifest()
    assert manifest is not None
    assert manifest.metrics["gold_error"] < 5e-3


@pytest.mark.slow
def test_two_teachers_of_two_processes_share_the_shards(workers: ForkedWorkers, spec_of: SpecOf, store: Store) -> None:
    expected, _ = undisturbed_dump(workers, spec_of("alone"))
    spec = spec_of("four", **CUT | {"num_processes": 4})
    require_done(torchrun(spec, 4), spec)
    assert objects_of(Artifact(store, spec.directory)).keys() == expected.keys()


@pytest.mark.slow
def test_a_stop_and_a_refusal_end_all_processes_that_hold_a_teacher(spec_of: SpecOf, store: Store) -> None:
    spec = spec_of("stopped", **CUT, tokens_per_batch=1, head_chunk_tokens=1)
    process = torchrun(spec, 2)
    artifact = Artifact(store, spec.directory)
    while not store.exists(artifact.path("shards/prior.json")):
        assert process.poll() is None
        time.sleep(0.01)
    (Path(spec.scratch) / STOP_FILE).touch()
    process.wait(30)
    assert json.loads((Path(spec.scratch) / END_FILE).read_text())["code"] == EXIT_PREEMPTED
    assert not store.exists(artifact.path("shards/main.json"))
    again = spec_of("stopped", **CUT)
    require_done(torchrun(again, 2), again)

    odd = spec_of("refused", make_model(num_attention_heads=3, num_key_value_heads=3, hidden_size=24), **CUT)
    torchrun(odd, 2).wait(60)
    end = json.loads((Path(odd.scratch) / END_FILE).read_text())
    assert end["code"] == EXIT_BAD_INPUT
    assert "num_attention_heads 3" in end["message"]


def test_what_cannot_be_cut_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match="no tensor-parallel plan for gpt2 models; set"):
        check_plan(GPT2Config(), 2)
    with pytest.raises(BadInputError, match="num_attention_heads 32, which runtime"):
        check_plan(LlamaConfig(), 3)
    with pytest.raises(BadInputError, match="num_key_value_heads 2, which runtime"):
        check_plan(LlamaConfig(num_key_value_heads=2), 4)
    check_plan(LlamaConfig(num_key_value_heads=2), 2)
    with pytest.raises(ValidationError, match="tensor_parallel 2 needs launcher torchrun and num_processes"):
        DumpLogitsRuntime(tensor_parallel=2, num_processes=3, launcher="torchrun")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(BadInputError, match="tensor_parallel is 2, the launch has 3 processes"):
        Place.of_environment(2)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "5")
    assert Place.of_environment(2) == Place(2, 4, 1, 2)
