"""The tasks of the profile medius as lm-eval ships them, from a local mirror, in processes that reach no network."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import InputRecord
from tasks.modeling.model_files import save_causal_lm
from tasks.modeling.tokenizer_files import save_tokenizer
from tasks.worker.spec import WorkerSpec
from tests.benchmarks.leaderboard_mirror import GROUPS, write_gpqa, write_leaderboard
from tests.evaluate.conftest import make_tokenizer

CONTEXT = 8192
RECIPE: dict[str, Any] = {
    # With the versions that the profile pins: a harness that has others is seen here first.
    "tasks": [task.model_dump(mode="json") for task in load_profile("medius").assessment.evaluate.recipe.tasks],
    "reference": "base",
    "candidate": "final",
    "bits_per_byte": False,
}
NUM_TASKS = {
    "leaderboard_ifeval": 1,
    "leaderboard_bbh": 24,
    "leaderboard_gpqa": 3,
    "leaderboard_mmlu_pro": 1,
    "leaderboard_musr": 3,
    "leaderboard_math_hard": 7,
}


def write_model(directory: Path, seed: int) -> Path:
    """One layer with a long context, which ends an answer at its first token: the end token's row is the largest there,
    since the first number of every hidden state is a large one."""
    tokenizer = make_tokenizer(40)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 20.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = 10.0
    save_causal_lm(model, directory)
    save_tokenizer(tokenizer, directory)
    return directory


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return write_leaderboard(tmp_path / "mirror")


@pytest.fixture
def launch(
    tmp_path: Path, mirror: Path, artifact_of: Callable[..., Artifact]
) -> Callable[[], tuple[int, str, Artifact]]:
    """launch() runs the worker on two models in a process of its own, with a scratch folder of its own: its exit code,
    what it said, and the artifact."""
    records = {}
    for seed, name in enumerate(("base", "final")):
        artifact = artifact_of(write_model(tmp_path / name, seed))
        manifest = artifact.manifest()
        assert manifest is not None
        records[f"model.{name}"] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
    home = tmp_path / "home"
    home.mkdir()
    number = iter(range(1000))

    def run() -> tuple[int, str, Artifact]:
        attempt = next(number)
        spec = WorkerSpec(
            stage="evaluate",
            label="evaluate",
            key="0" * 64,
            attempt=f"{attempt:08}",
            store=artifact.store.uri,
            directory="artifacts/evaluate/evaluate-0000000000000000",
            scratch=str(tmp_path / f"scratch-{attempt}"),
            input_cache=str(tmp_path / "inputs"),
            recipe=RECIPE,
            runtime={"mirror": str(mirror), "batch_size": 32},
            inputs=records,
        )
        file = tmp_path / f"spec-{attempt}.json"
        file.write_text(spec.model_dump_json())
        # A proxy that nobody listens at: whatever asks the network fails.
        nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **nowhere,
        }
        command = [sys.executable, "-m", "tasks.evaluate.worker", "--spec", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1100, check=False)
        assert list(home.rglob("*")) == []
        return done.returncode, done.stderr, Artifact(artifact.store, spec.directory)

    return run


def read(artifact: Artifact, name: str) -> bytes:
    receipt = artifact.receipts()["main"]
    (entry,) = (each for each in receipt.objects if each.name == name)
    return artifact.store.get(artifact.path(entry.path))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_six_tasks_are_scored_and_a_second_launch_asks_the_same(
    launch: Callable[[], tuple[int, str, Artifact]], mirror: Path
) -> None:
    code, said, done = launch()
    assert code == 0, said
    first = {name: read(done, name) for name in ("results.json", "samples/base.jsonl", "samples/final.jsonl")}
    results = json.loads(first["results.json"])
    for model in results["models"].values():
        assert set(model["entries"]) == set(GROUPS)
        for name, metric in GROUPS.items():
            scored = model["entries"][name]
            assert (scored["metric"], scored["n"]) == (metric, 2 * NUM_TASKS[name])
            assert 0 <= scored["value"] <= 1
            assert math.isfinite(scored["stderr"])
        assert model["entries"]["leaderboard_gpqa"]["clusters"] == 2
    assert set(results["paired"]["final"]["base"]["entries"]) == set(GROUPS)
    assert all(len(digest) == 64 for digest in results["harness"]["data"].values())
    base, final = (
        [json.loads(line) for line in first[f"samples/{name}.jsonl"].splitlines()] for name in ("base", "final")
    )
    assert [item["prompt"] for item in base] == [item["prompt"] for item in final]

    # As if it had been killed on the last model, in the task that shuffles its choices when it is loaded.
    for name in ("main", "model-final-leaderboard_gpqa", "model-final-leaderboard_ifeval"):
        done.store.delete(done.path(f"shards/{name}.json"))
    before = done.receipts()
    code, said, again = launch()
    assert code == 0, said
    kept = again.receipts()
    assert {name: kept[name].write_id for name in before} == {name: each.write_id for name, each in before.items()}
    assert {name: read(again, name) for name in first} == first

    # The same with data that have changed: refused before a model is asked anything.
    again.store.delete(again.path("shards/model-final-leaderboard_gpqa.json"))
    write_gpqa(mirror, items=3)
    code, said, _ = launch()
    assert code == 2
    assert "an earlier launch evaluated base on leaderboard_gpqa with other data than are read now" in said
    assert "delete the receipts shards/model-*-leaderboard_gpqa.json" in said
    assert "model-final-leaderboard_gpqa" not in again.receipts()
