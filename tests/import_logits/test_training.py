"""An imported set trains a student, a killed import goes on, and a profile may have a branch without a teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.dag import build
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import Store
from tasks.worker.job import Job
from tests.committed import metrics_of
from tests.import_logits.sets import documents, write_distillkit, write_plain
from tests.import_logits.test_distillkit import BASE
from tests.training.parts import make_model, model_directory

TRAINING = {
    "loss": {"forward_kl": 1.0, "ce": 0.0},
    "optimizer": {"learning_rate": 0.01},
    "steps": 8,
    "rows_per_step": 6,
    "precision": "float32",
}


def objects(artifact: Artifact) -> dict[str, str]:
    manifest = artifact.manifest()
    assert manifest is not None
    return {entry.name: entry.sha256 for entry in manifest.objects}


def test_a_student_learns_from_an_imported_set(
    tmp_path: Path,
    import_files: Callable[..., Artifact],
    run_stage: Callable[..., Artifact],
    artifact_of: Callable[..., Artifact],
) -> None:
    path = write_distillkit(tmp_path / "set.parquet", documents(), {**BASE, "exact_k": 16})
    form = {"kind": "distillkit", "compression": {**BASE, "exact_k": 16}}
    student = artifact_of(model_directory(tmp_path / "student", make_model()))
    inputs = {"student": student, "logits": import_files(path, format=form, values="warped")}
    found = metrics_of(run_stage("distill", TRAINING, inputs, {"device": "cpu", "micro_batch_tokens": 60}))
    assert 0 < found["heldout_kl"] < 0.9 * found["heldout_kl_start"]
    other = artifact_of(model_directory(tmp_path / "other", make_model(), vocab_size=61))
    with pytest.raises(BadInputError, match="were dumped with tokenizer"):
        run_stage("distill", TRAINING, inputs | {"student": other}, {"device": "cpu", "micro_batch_tokens": 60})


def test_a_killed_import_goes_on_where_it_was(
    tmp_path: Path, import_files: Callable[..., Artifact], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_plain(tmp_path / "set.parquet", documents())
    whole = objects(import_files(path, seed=1))
    commit, made = Job.commit_shard, list[str]()

    def killed(self: Job, shard: str, directory: Path, metrics: dict[str, object] | None = None) -> object:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(shard)
        return commit(self, shard, directory, metrics)

    monkeypatch.setattr(Job, "commit_shard", killed)
    # The same import under another key.
    with pytest.raises(KeyboardInterrupt):
        import_files(path, seed=1, teacher={})
    assert made == ["prior", "train-00000"]
    made.clear()
    monkeypatch.setattr(Job, "commit_shard", lambda *a, **k: (made.append(a[1]), commit(*a, **k))[1])
    artifact = import_files(path, seed=1, teacher={})
    assert made[0] == "train-00001"
    assert objects(artifact) == whole


def imported_branch(path: Path, tmp_path: Path, *branches: str) -> Path:
    """A copy of the profile micro whose branches read stored logits."""
    document = yaml.safe_load((CONFIGS / "micro.yaml").read_text())
    for name in branches:
        del document["branches"][name]["dump_logits"]
        document["branches"][name]["import_logits"] = {
            "recipe": {"source": {"kind": "parquet", "paths": [str(path)]}, "format": {"kind": "plain"}}
        }
    target = tmp_path / "imports.yaml"
    target.write_text(yaml.safe_dump(document))
    return target


def test_a_branch_may_import_its_logits(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "set.parquet", documents())
    plain = {step.label: step for step in build(load_profile("micro"))}
    profile = imported_branch(path, tmp_path, "qwen")
    steps = {step.label: step for step in build(load_profile(str(profile)))}
    assert steps["logits-qwen"].stage.name == "import_logits"
    assert {role: step.label for role, step in steps["logits-qwen"].inputs.items()} == {
        "tokenizer": "model-qwen-teacher"
    }
    assert steps["logits-llama"].key == plain["logits-llama"].key
    assert steps["evaluate"].inputs["corpus"].label == "corpus-llama"
    write_plain(path, documents()[:-1])
    other = {step.label: step for step in build(load_profile(str(profile)))}
    assert other["logits-qwen"].key != steps["logits-qwen"].key, "other content is another artifact"
    both = {step.label: step for step in build(load_profile(str(imported_branch(path, tmp_path, "qwen", "llama"))))}
    assert both["evaluate"].inputs["corpus"].label == "corpus-llama"
    small = load_profile(str(profile), smoke=True)
    assert small.branches["qwen"].import_logits.recipe.source.max_rows == 64  # type: ignore[union-attr]


def test_a_branch_has_its_logits_from_one_place(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "set.parquet", documents())
    document = yaml.safe_load(imported_branch(path, tmp_path, "qwen").read_text())
    for change in ({"dump_logits": document["branches"]["llama"]["dump_logits"]}, {"import_logits": None}):
        branches = document["branches"] | {"qwen": document["branches"]["qwen"] | change}
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(document | {"branches": branches}))
        with pytest.raises(BadInputError, match=r"branches\.qwen: give one of `dump_logits`"):
            load_profile(str(tmp_path / "wrong.yaml"))
