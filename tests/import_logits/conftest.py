from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tests.training.parts import make_model, model_directory


@pytest.fixture
def tokenizer(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> Artifact:
    return artifact_of(model_directory(tmp_path / "tokenizer", make_model()))


@pytest.fixture
def import_files(run_stage: Callable[..., Artifact], tokenizer: Artifact) -> Callable[..., Artifact]:
    """import_files(paths…, recipe fields…) imports plain files as float32, four documents a shard."""

    def run(*paths: Path, heldout: tuple[Path, ...] = (), **fields: Any) -> Artifact:
        source = {"paths": [str(path) for path in paths], "heldout_paths": [str(path) for path in heldout]}
        source |= fields.pop("source", {})
        recipe = {
            "source": source,
            "format": {"kind": "plain"},
            "values": "float32",
            "rows_per_shard": 4,
            "heldout_fraction": 0.3,
        }
        return run_stage("import_logits", recipe | fields, {"tokenizer": tokenizer})

    return run
