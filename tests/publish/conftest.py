"""A small finished pipeline in a store: two branches with their twins, a fusion, and an evaluation of all of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.fingerprint import artifact_key
from tasks.artifacts.manifest import MAIN_SHARD, InputRecord, Manifest, Provenance, digest_of
from tasks.artifacts.store import Store
from tasks.evaluate.results import Measured, build_results, gate_metrics
from tasks.evaluate.stage import EvaluateRecipe
from tasks.worker.job import Job
from tasks.worker.spec import WorkerSpec

Make = Callable[..., Artifact]
CREATED = "2026-11-24T08:15:00+00:00"


@pytest.fixture
def make(tmp_path: Path, store: Store) -> Make:
    """make(stage, label, files, inputs={}, metrics={}, recipe={}) commits an artifact of these bytes by name."""

    def build(
        stage: str,
        label: str,
        files: Mapping[str, bytes],
        inputs: Mapping[str, Artifact] | None = None,
        metrics: Mapping[str, Any] | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> Artifact:
        records = {}
        for role, artifact in (inputs or {}).items():
            manifest = artifact.manifest()
            assert manifest is not None
            records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
        key = artifact_key(stage, 1, {"label": label, **(recipe or {})}, {role: r.key for role, r in records.items()})
        spec = WorkerSpec(
            stage=stage,
            label=label,
            key=key,
            attempt=uuid.uuid4().hex[:8],
            store=store.uri,
            directory=f"artifacts/{stage}/{label}-{key[:16]}",
            scratch=str(tmp_path / "scratch" / uuid.uuid4().hex),
            input_cache=str(tmp_path / "inputs"),
            recipe=dict(recipe or {}),
            runtime={},
            inputs=records,
        )
        job = Job(spec)
        directory = job.new_directory("files")
        for name, data in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
        job.complete(directory, dict(metrics or {}))
        receipts = job.receipts()
        objects = job.artifact.covered_objects(receipts)
        provenance = Provenance(
            write_id=uuid.uuid4().hex,
            created=CREATED,
            seconds=12.0,
            attempts=1,
            flow_run=None,
            git_sha=None,
            git_dirty=None,
            hardware={"host": "node-17"},
            versions={},
            runtime={},
        )
        job.artifact.commit(
            Manifest(
                stage=stage,
                version=1,
                label=label,
                key=key,
                digest=digest_of(objects),
                recipe=spec.recipe,
                inputs=records,
                objects=objects,
                metrics=receipts[MAIN_SHARD].metrics,
                provenance=provenance,
            )
        )
        return job.artifact

    return build


def model_files(seed: int, tmp_path: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    file = tmp_path / f"weights-{seed}.safetensors"
    save_file({"embed": rng.random((8, 4), np.float32), "head": rng.random((8, 4), np.float32)}, file)
    config = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": 1,
        "hidden_size": 4,
        "vocab_size": 8,
        "max_position_embeddings": 128,
    }
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": file.read_bytes(),
        "tokenizer.json": json.dumps({"model": {"vocab": {"a": 0, "b": 6}}, "added_tokens": [{"id": 7}]}).encode(),
        "chat_template.jinja": b"{{ messages }}",
        "generation_config.json": b'{"eos_token_id": 7}',
        "training_log.jsonl": b'{"step": 1}\n',
    }


def measured(seed: int, rate: float) -> Measured:
    rng = np.random.default_rng(seed)
    asked = {"output_type": "generate_until", "plain_text": False, "data_sha256": "ab" * 32}
    tasks = {"exercise_add": {"version": "1", "num_fewshot": 0, "metric": "exact_match", **asked}}
    return Measured(
        items=[
            {"entry": "exercise_add", "task": "exercise_add", "item": index, "outcome": float(outcome)}
            for index, outcome in enumerate(rng.random(50) < rate)
        ],
        documents=[
            {"document": str(index), "bits": float(bits), "num_bytes": 100}
            for index, bits in enumerate(rng.normal(200, 10, 20))
        ],
        about={
            "harness": {"lm_eval": "0.4.13", "tasks": tasks},
            "tokenizer": {"digest": "d", "template_sha256": "t"},
            "start_token": 0,
            "window_tokens": 64,
        },
    )


def second_entry(results: dict[str, Any]) -> dict[str, Any]:
    """The results with a benchmark more, of two tasks, the same for all models."""
    own = {"metric": "acc_norm", "value": 0.25, "stderr": 0.03, "n": 200}
    alike = {"difference": 0.0, "stderr": 0.01, "z": 0.0, "n": 200}
    asked = {
        "version": "1",
        "num_fewshot": 5,
        "metric": "acc_norm",
        "output_type": "multiple_choice",
        "data_sha256": None,
    }
    # The second one as if it were running text, as the cloze items are.
    results["harness"]["tasks"] |= {
        f"gpqa_{part}": asked | {"plain_text": part == "diamond"} for part in ("main", "diamond")
    }
    for model in results["models"].values():
        model["entries"]["leaderboard_gpqa"] = own
        model["tasks"] |= {"gpqa_main": own, "gpqa_diamond": own}
    for pairs in results["paired"].values():
        for pair in pairs.values():
            pair["entries"]["leaderboard_gpqa"] = alike
    return results


def hub_model(repository: str) -> dict[str, Any]:
    """The recipe of a model on the hub."""
    return {"source": {"kind": "hub", "repo": repository, "revision": "0" * 40, "mode": "copy"}}


@pytest.fixture
def pipeline(make: Make, tmp_path: Path) -> dict[str, Artifact]:
    """All artifacts by label, in the order in which they were made."""
    base = make("models", "student", model_files(0, tmp_path), recipe=hub_model("Qwen/Qwen2.5-14B-Instruct"))
    texts = {"sources": [{"kind": "hub", "dataset": "HuggingFaceFW/fineweb"}, {"kind": "stdlib_docs"}]}
    corpus = make("corpus", "corpus", {"heldout.parquet": b"rows"}, {"tokenizer": base}, recipe=texts)
    made = {"student": base, "corpus": corpus}
    repositories = {"llama": "meta-llama/Llama-3.1-405B-Instruct", "qwen": "Qwen/Qwen2.5-72B-Instruct"}
    for index, (name, repository) in enumerate(repositories.items()):
        teacher = make("models", f"teacher-{name}", model_files(10 + index, tmp_path), recipe=hub_model(repository))
        dump = make(
            "dump_logits",
            f"dump-{name}",
            {"logits.json": b"{}"},
            {"teacher": teacher, "corpus": corpus},
            {"tokens": 1000, "bytes_per_token": 101.5, "captured_mass": 0.97, "gold_error": 1e-4},
            {"support": {"kind": "top_k", "num_kept": 64}},
        )
        given = {"student": base, "logits": dump}
        made |= {f"teacher-{name}": teacher, f"dump-{name}": dump}
        for label, forward_kl, end in ((f"distill-{name}", 1.0, 0.5), (f"twin-{name}", 0.0, 1.25)):
            metrics = {"heldout_kl_start": 3.0, "heldout_kl": end, "history": [1, 2]}
            recipe = {"loss": {"forward_kl": forward_kl, "ce": 1 - forward_kl}}
            seed = 20 + len(made)
            made[label] = make("distill", label, model_files(seed, tmp_path), given, metrics, recipe)
    made["revert-llama"] = make(
        "surgeon",
        "revert-llama",
        model_files(30, tmp_path),
        {"trained": made["distill-llama"], "original": base},
        recipe={"mode": "revert"},
    )
    branches = {"branch.llama": made["revert-llama"], "branch.qwen": made["distill-qwen"]}
    merge = {"merge_method": "ties", "models": {"llama": {"parameters": {"density": 1.0, "weight": 0.5}}}}
    made["fuse"] = make("fuse", "fuse", model_files(31, tmp_path), {"base": base, **branches}, recipe=merge)
    models = {
        "base": base,
        "branch-llama": made["revert-llama"],
        "branch-qwen": made["distill-qwen"],
        "twin-qwen": made["twin-qwen"],
        "final": made["fuse"],
    }
    evaluated = EvaluateRecipe.model_validate(
        {
            "tasks": [{"type": "exercises", "kinds": ["add"], "items_per_kind": 50}],
            "reference": "base",
            "candidate": "final",
            "parents": ["branch-qwen"],
        }
    )
    rates = {"base": 0.1, "branch-llama": 0.6, "branch-qwen": 0.6, "twin-qwen": 0.3, "final": 0.8}
    results = build_results({name: measured(index, rates[name]) for index, name in enumerate(models)}, evaluated)
    made["evaluate"] = make(
        "evaluate",
        "evaluate",
        {"results.json": json.dumps(results).encode()},
        {**{f"model.{name}": artifact for name, artifact in models.items()}, "corpus": corpus},
        gate_metrics(results),
        evaluated.model_dump(mode="json"),
    )
    return made
