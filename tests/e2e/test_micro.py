"""The whole recipe, run by its command as a user runs it: what it prints, keeps, reuses and publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.runs import all_runs
from tasks.artifacts.store import open_store
from tasks.artifacts.verify import find_damage
from tests.e2e.micro_run import MicroRun, micro_steps, run_micro
from tests.seaweed import BUCKET, SeaweedServer

LABELS = [step.label for step in micro_steps()]


def test_a_run_prints_its_results_and_where_the_model_is(undisturbed: MicroRun) -> None:
    lines = undisturbed.out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    models = {"base", "llama", "llama-reverted", "qwen", "fused", "tuned", "final"}
    # A table of all, one by benchmark, which has two rows more, and one of differences.
    assert [row[0] for row in cells].count("final") == 2
    assert {row[0] for row in cells} == models | {"metric", "items"}
    assert all([row[0] for row in cells].count(name) == 3 for name in models - {"final"})
    assert "bits per byte" in undisturbed.out
    assert any(line.startswith("final minus base:") for line in lines)
    assert lines[-1] == "report: build/reports/micro.html"
    model = lines[-2].removeprefix("model: ")
    assert model == f"{undisturbed.store}/{micro_steps()[-1].directory}"
    assert (Path(model) / "manifest.json").is_file()
    assert "Traceback" not in undisturbed.err


def test_every_step_is_committed_whole(undisturbed: MicroRun) -> None:
    manifests = undisturbed.manifests()
    assert list(manifests) == LABELS
    store = open_store(undisturbed.store)
    for step in micro_steps():
        manifest = manifests[step.label]
        assert manifest.key == step.key
        assert manifest.provenance.attempts == 1
        assert {role: record.key for role, record in manifest.inputs.items()} == {
            role: source.key for role, source in step.inputs.items()
        }
        assert find_damage(Artifact(store, step.directory), manifest) == []
    left = [entry.path for entry in store.list("artifacts") if "/checkpoints/" in entry.path or "lease" in entry.path]
    assert left == [], "a finished run leaves neither checkpoints nor leases"


def test_no_object_tells_where_or_by_whom_it_was_made(undisturbed: MicroRun) -> None:
    """A path or an attempt's number in an object would give another digest elsewhere."""
    store = open_store(undisturbed.store)
    telling = [str(undisturbed.folder).encode()]
    for step in micro_steps():
        manifest = Artifact(store, step.directory).manifest()
        assert manifest is not None
        attempts = {entry.path.split("/")[1].rpartition("-")[2].encode() for entry in manifest.objects}
        for entry in manifest.objects:
            data = store.get(f"{step.directory}/{entry.path}")
            assert not any(word in data for word in [*telling, *attempts]), f"{step.label}: {entry.name}"


def test_the_store_remembers_the_run(undisturbed: MicroRun) -> None:
    record = next(run for run in all_runs(open_store(undisturbed.store)) if run.profile == "micro")
    assert record.state == "finished"
    assert record.config == load_profile("micro", store=undisturbed.store).model_dump(mode="json")
    assert [step.label for step in record.steps] == LABELS
    manifests = undisturbed.manifests()
    assert {manifest.provenance.flow_run for manifest in manifests.values()} == {record.run}


def test_prefect_shows_the_run(undisturbed: MicroRun) -> None:
    assert undisturbed.prefect("select name, state_type from flow_run order by start_time")[0] == ("micro", "COMPLETED")
    tasks = dict(undisturbed.prefect("select task_run.name, state_name from task_run order by start_time desc"))
    assert set(tasks) == set(LABELS), "each task run bears its step's label"
    kinds = {kind for (kind,) in undisturbed.prefect("select distinct type from artifact")}
    assert {"progress", "table", "markdown"} <= kinds
    keys = {key for (key,) in undisturbed.prefect("select key from artifact where type = 'progress'")}
    assert {"logits-llama", "distill-qwen", "evaluate"} <= keys
    tables = dict(undisturbed.prefect("select key, data from artifact where type = 'table'"))
    rows = json.loads(json.loads(tables["gates-distill-llama"]))
    assert [(row["gate"], row["passed"]) for row in rows] == [("heldout_kl_must_fall", "yes")]
    logged = undisturbed.prefect(
        "select count(*) from log where message like 'sft: the checkpoint after step % is in the store'"
    )
    assert logged == [(3,)]
    results = json.loads(json.loads(tables["results"]))
    assert {row["model"] for row in results} == {"base", "llama", "llama-reverted", "qwen", "fused", "tuned", "final"}


def test_the_published_model_loads_and_answers(undisturbed: MicroRun, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tasks.modeling.stop_prompts import PROMPTS

    published = micro_steps()[-1]
    artifact = Artifact(open_store(undisturbed.store), published.directory)
    manifest = artifact.manifest()
    assert manifest is not None
    names = {entry.name for entry in manifest.objects}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py"))}
    folder = artifact.fetch(manifest, tmp_path / "model")

    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    stopped = 0
    for asked in PROMPTS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        length = prompt["input_ids"].shape[1]
        answer = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0, length:]
        stopped += int(answer[-1]) in ends
        assert not ends & set(answer[:-1].tolist()), "nothing is said after the end"
    # The gate min_stops held the chosen model to the same prompts and as many tokens.
    judged = undisturbed.manifests()["choose"].metrics["chosen_stops"]
    assert stopped == judged >= 1


def test_a_second_run_reuses_every_step(undisturbed: MicroRun) -> None:
    store = open_store(undisturbed.store)
    before = {entry.path: entry.modified for entry in store.list("artifacts")}
    again = run_micro(undisturbed.folder, undisturbed.store)
    assert again.code == 0, again.err
    assert again.seconds <= 60
    assert again.out == undisturbed.out
    assert {entry.path: entry.modified for entry in store.list("artifacts")} == before, "nothing is written anew"
    (newest,) = again.prefect("select id from flow_run order by start_time desc limit 1")
    states = again.prefect(f"select name, state_name from task_run where flow_run_id = '{newest[0]}'")
    assert dict(states) == dict.fromkeys(LABELS, "Reused")


@pytest.mark.slow
def test_the_same_run_on_s3_makes_the_same_bytes(undisturbed: MicroRun, server: SeaweedServer, tmp_path: Path) -> None:
    run = run_micro(tmp_path / "run", f"s3://{BUCKET}/runs/micro", server.environment)
    assert run.code == 0, run.err
    assert run.digests() == undisturbed.digests()
    local = run.out.replace(run.store, undisturbed.store)
    assert local == undisturbed.out
    for line in run.err.splitlines():
        assert "medius-test-secret" not in line
