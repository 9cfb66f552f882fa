"""A finished store against its teacher: what was dumped agrees, what another model would have said does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flows.verification import Reference, recompute
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, WorkerFailedError
from tasks.artifacts.manifest import InputRecord
from tasks.dump_logits import recompute as worker
from tasks.dump_logits.recomputed import RECOMPUTED_FILE, Recomputed
from tasks.runtime.declare import Runtime
from tasks.runtime.devices import VISIBLE, devices_of
from tasks.worker.job import Job
from tasks.worker.spec import WorkerSpec
from tests.committed import manifest_of
from tests.dump_logits.conftest import LENGTHS, VOCAB, make_model, make_tokenizer, quantise_to_fp8
from tests.dump_logits.vllm_server import VllmServer

Make = Callable[..., Any]
Inputs = dict[str, Artifact]


def recomputed(artifact: Artifact, tmp_path: Any, num_positions: int, **changes: Any) -> Recomputed:
    """What the worker finds, run in this process."""
    manifest = manifest_of(artifact).model_copy(update=changes)
    spec = WorkerSpec(
        stage="dump_logits",
        label="logits",
        key=manifest.key,
        attempt="aaaaaaaa",
        store=artifact.store.uri,
        directory=artifact.directory,
        scratch=str(tmp_path / "recompute"),
        input_cache=str(tmp_path / "inputs"),
        recipe={**manifest.recipe, "num_positions": num_positions},
        runtime={"device": "cpu"},
        inputs=manifest.inputs,
    )
    job = Job(spec)
    worker.run(job)
    return Recomputed.model_validate_json((job.scratch / RECOMPUTED_FILE).read_bytes())


SUPPORTS = {
    "top_k": {"kind": "top_k", "num_kept": 16},
    "adaptive": {"kind": "adaptive", "min_probability": 0.02, "max_kept": 16},
    "sampled": {"kind": "sampled", "num_draws": 20},
}


@pytest.mark.parametrize("support", list(SUPPORTS))
@pytest.mark.parametrize(("values", "dtype"), [("warped", "float32"), ("float32", "float32"), ("float16", "bfloat16")])
def test_a_dump_agrees_with_its_teacher(
    support: str, values: str, dtype: str, run_stage: Make, inputs: Inputs, recipe_of: Make, tmp_path: Any
) -> None:
    recipe = recipe_of(teacher={"dtype": dtype}, support=SUPPORTS[support], values=values)
    found = recomputed(run_stage("dump_logits", recipe, inputs), tmp_path, 60)
    # 16 positions of a row at most.
    assert found.num_positions == 60
    assert found.num_rows >= 4
    assert found.problems("x") == []
    gold, mass, divergence = found.comparisons
    assert gold.largest <= {"warped": 0.0025, "float32": 1e-4, "float16": 0.2}[values]
    assert mass.largest <= {"warped": 0.0025, "float32": 1e-4, "float16": 0.05}[values]
    assert (
        -1e-6
        <= divergence.mean
        <= {"warped": 0.05 if support == "sampled" else 1e-3, "float32": 1e-6}.get(values, 0.01)
    )


def test_another_teacher_is_named_by_every_measure(
    run_stage: Make, inputs: Inputs, teacher_of: Make, recipe_of: Make, tmp_path: Any
) -> None:
    artifact = run_stage("dump_logits", recipe_of(), inputs)
    model = make_model()
    model.model.layers[1].mlp.down_proj.weight.data *= 1.5
    other = teacher_of(model)
    record = InputRecord(key=manifest_of(other).key, digest=manifest_of(other).digest, directory=other.directory)
    inputs_of_other = {**manifest_of(artifact).inputs, "teacher": record}
    found = recomputed(artifact, tmp_path, 1000, inputs=inputs_of_other)
    # All rows, 16 positions of each at most.
    assert found.num_positions == sum(min(length - 1, 16) for part in LENGTHS.values() for length in part)
    problems = found.problems("there")
    assert len(problems) == 3
    assert problems[0].startswith("there: the teacher does not say what is stored: the following token's log-probab")
    assert "(0.000101 allowed), by " in problems[0]


def test_a_served_store_agrees_with_the_teacher_loaded_here(
    run_stage: Make, corpus_of: Make, rows: Any, teacher_of: Make, recipe_of: Make, tmp_path: Any
) -> None:
    model = make_model(VOCAB)
    given = {"teacher": teacher_of(model), "corpus": corpus_of(rows)}
    recipe = recipe_of(teacher={"kind": "served", "dtype": "float32"}, temperatures=[])
    with VllmServer(model, make_tokenizer()) as server:
        artifact = run_stage("dump_logits", recipe, given, {"server": {"base_url": server.base_url}})
    found = recomputed(artifact, tmp_path, 60)
    assert (found.dtype, found.problems("x"), found.agreement) == ("float32", [], 1.0)


def test_a_quantised_teacher_is_compared_with_the_one_that_it_was_made_of(
    run_stage: Make, inputs: Inputs, teacher_of: Make, recipe_of: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quantised = {**inputs, "teacher": teacher_of(make_model(), prepare=quantise_to_fp8)}
    recipe = recipe_of(teacher={"dtype": "bfloat16", "quantisation": "fp8"})
    artifact = run_stage("dump_logits", recipe, quantised)
    full = Reference.at(inputs["teacher"].uri, None, None)
    found = recompute(artifact, manifest_of(artifact), 60, full)
    # The model is stored in float32, and so is what it says now.
    assert (found.dtype, found.num_positions) == ("float32", 60)
    divergence = found.comparisons[2]
    # FP8 moves a weight by up to 1/16 of it; a random model's flat distributions move by 0.04 nats.
    assert 1e-4 < divergence.mean < 0.2
    assert found.agreement is not None
    assert 0.3 < found.agreement <= 1
    first = found.audit("there")[0]
    assert first.startswith("compared 60 positions of ")
    assert f"KL from it to the store {divergence.mean:.3g} nats on average" in first
    assert found.beyond("here", "there", 0.2) == []
    (problem,) = found.beyond("here", "there", 1e-5)
    assert "nats from those of there on average, and --max-kl allows 1e-05; dump with a finer quantisation" in problem
    # Two processes that hold the model together say the same of it, but for rounding.
    together = recompute(artifact, manifest_of(artifact), 60, full, processes=2)
    assert together.comparisons[2].mean == pytest.approx(divergence.mean, rel=1e-4)
    assert together.agreement == found.agreement
    # Against its own teacher, loaded again by transformers' quantiser, it is what it was.
    assert recompute(artifact, manifest_of(artifact), 60).problems("x") == []


def test_a_model_with_another_tokenizer_is_no_reference(
    run_stage: Make, inputs: Inputs, teacher_of: Make, recipe_of: Make, tmp_path: Any
) -> None:
    artifact = run_stage("dump_logits", recipe_of(), inputs)
    other = manifest_of(other_artifact := teacher_of(vocab_size=VOCAB - 1))
    record = InputRecord(key=other.key, digest=other.digest, directory=other_artifact.directory)
    with pytest.raises(BadInputError, match=r"the model has another tokenizer .* than the logits"):
        recomputed(artifact, tmp_path, 20, inputs={**manifest_of(artifact).inputs, "teacher": record})


def test_it_runs_in_a_process_of_its_own_and_says_why_it_cannot(
    run_stage: Make, inputs: Inputs, recipe_of: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = run_stage("dump_logits", recipe_of(), inputs)
    found = recompute(artifact, manifest_of(artifact), 20)
    assert (found.num_positions, found.problems("x")) == (20, [])
    assert not list((tmp_path / ".medius" / "scratch").glob("recompute-*"))
    config = manifest_of(inputs["teacher"]).object("config.json")
    (inputs["teacher"].store.local_path(inputs["teacher"].path(config.path))).unlink()
    with pytest.raises(WorkerFailedError, match=r"could not be run again \(.*config.json is missing"):
        recompute(artifact, manifest_of(artifact), 20)


def test_it_waits_for_accelerators_that_a_stage_has(
    run_stage: Make, inputs: Inputs, recipe_of: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = run_stage("dump_logits", recipe_of(), inputs)
    # Not a real device, and with locks that no other test has.
    monkeypatch.setenv(VISIBLE, "4")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        with devices_of(Runtime(), "a stage") as taken:
            assert taken is not None
            found = pool.submit(recompute, artifact, manifest_of(artifact), 20)
            time.sleep(1)
            assert not found.done()
            assert not (tmp_path / ".medius").exists()
        assert found.result(timeout=120).num_positions == 20
    assert capsys.readouterr().err.count("recomputing dump_logits waits: stages have the accelerators") == 1


def test_more_processes_than_accelerators_and_an_installation_without_torch_are_told(
    run_stage: Make, inputs: Inputs, recipe_of: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = run_stage("dump_logits", recipe_of(), inputs)
    monkeypatch.setenv(VISIBLE, "4")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(BadInputError, match="needs 2 accelerators on one host"):
        recompute(artifact, manifest_of(artifact), 20, processes=2)
    monkeypatch.setattr("tasks.runtime.launch.find_spec", lambda _name: None)
    with pytest.raises(BadInputError, match="this installation has no torch"):
        recompute(artifact, manifest_of(artifact), 20)
