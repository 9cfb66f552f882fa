"""The student: the teacher with most of its layers taken out, so that it starts broken and little training heals it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasks.modeling.model_files import copy_tokenizer_files, load_causal_lm, save_causal_lm
from tests.bench.quality_folder import FOLDER

LAYERS = (*range(4), *range(14, 30))
"""Kept of the teacher's 30, in their order: 99 of 135 million parameters. Fewer need more tokens to heal than fit."""


def student_directory(teacher: Path) -> Path:
    """A model directory in float32 with the teacher's embeddings, tokenizer and some of its layers."""
    target = FOLDER / "student"
    if not (target / "tokenizer.json").is_file():
        draft = target.with_name(f"{target.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        model: Any = load_causal_lm(teacher, dtype=torch.float32)
        model.model.layers = nn.ModuleList(model.model.layers[layer] for layer in LAYERS)
        model.config.num_hidden_layers = len(LAYERS)
        save_causal_lm(model, draft)
        copy_tokenizer_files(teacher, draft)
        draft.rename(target)
    return target
