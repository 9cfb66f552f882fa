"""`transformers serve` as the server of a compared model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.models.stage import MINIATURES
from tests.benchmarks.leaderboard_mirror import write_leaderboard
from tests.committed import metrics_of, read
from tests.transformers_server import TransformersServer

MODEL = "qwen-teacher"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_served_miniature_answers_as_its_weights_do(
    run_stage: Callable[..., Artifact], artifact_of: Callable[..., Artifact], tmp_path: Path
) -> None:
    inputs = {f"model.{name}": artifact_of(MINIATURES / MODEL) for name in ("here", "final")}
    inputs["model.base"] = artifact_of(MINIATURES / "qwen-student")
    recipe = {
        "tasks": [{"type": "exercises", "kinds": ["sort", "add"], "items_per_kind": 10}],
        "reference": "base",
        "candidate": "final",
        "bits_per_byte": False,
        "max_new_tokens": 16,
        "served": {"there": {"model": MODEL, "revision": "the miniature"}},
    }
    with TransformersServer(MINIATURES / MODEL, tmp_path / "server.log") as server:
        runtime = {"servers": {"there": {"base_url": server.url, "concurrency": 2}}}
        artifact = run_stage("evaluate", recipe, inputs, runtime)
        items = {}
        for name in ("here", "there"):
            lines = read(artifact, f"samples/{name}.jsonl").splitlines()
            items[name] = [(item["task"], item["document"], item["completion"]) for item in map(json.loads, lines)]
        assert items["there"] == items["here"]
        assert metrics_of(artifact)["models"]["there"]["accuracy"]["value"] > 0.3, "equal, and not equally empty"

        # It takes no notice of echo and wants a text as its prompt: multiple choice cannot be scored by it.
        completions = {"api": "completions", "tokenizer": "here", "context_tokens": 512}
        recipe["served"] = {"there": {"model": MODEL, "revision": "the miniature", **completions}}
        recipe["tasks"] = [{"type": "lm_eval", "name": "leaderboard_musr", "metric": "acc_norm"}]
        mirror = str(write_leaderboard(tmp_path / "mirror"))
        with pytest.raises(BadInputError, match="the server of there"):
            run_stage("evaluate", recipe, inputs, {**runtime, "mirror": mirror})
