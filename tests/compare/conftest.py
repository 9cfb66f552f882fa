"""The tiny models and the corpus with which the evaluation is tested."""

from __future__ import annotations

from tests.evaluate.conftest import corpus_folder, model_folder

__all__ = ["corpus_folder", "model_folder"]
