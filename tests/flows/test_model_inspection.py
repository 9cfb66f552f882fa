"""`medius inspect` of models: their own bits per byte, and what changed against the first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks.artifacts.artifact import Artifact
from tasks.modeling.bits_per_byte import bits_per_byte
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.models.stage import MINIATURES
from tests.flows.conftest import Medius

ArtifactOf = Callable[..., Artifact]


def bits(name: str) -> dict[str, float]:
    folder = MINIATURES / name
    return bits_per_byte(load_causal_lm(folder, dtype=torch.float32), load_tokenizer(folder))


@pytest.fixture
def base(artifact_of: ArtifactOf) -> Artifact:
    return artifact_of(MINIATURES / "qwen-base")


def test_models_are_shown_with_their_bits_and_the_change_against_the_first(
    medius: Medius, artifact_of: ArtifactOf, base: Artifact
) -> None:
    other = artifact_of(MINIATURES / "llama-teacher")
    said = medius("inspect", base.uri, other.uri)
    assert said.code == 0, said
    first, second = (line for line in said.out.splitlines() if "(qwen2)" in line or "(llama)" in line)
    before, after = bits("qwen-base"), bits("llama-teacher")
    for kind, value in before.items():
        assert f" {value:.3f} " in first, kind
        assert f" {after[kind]:.3f} ({after[kind] / value - 1:+.0%}) " in second, kind
    assert "%" not in first


def test_what_is_no_model_is_not_compared(
    medius: Medius, artifact_of: ArtifactOf, base: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no model")
    text = artifact_of(tmp_path / "text")
    said = medius("inspect", base.uri, text.uri)
    assert said.code == 2, said
    assert f"{text.uri} is no model with weights" in said.err
    assert len(said.err.splitlines()) == 1
