"""The models of the production profile, as their config.json in configs/models/ describes them."""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from flows.model_shapes import SHAPES

FILES = sorted(path.stem for path in SHAPES.glob("*.json"))


def config_json(name: str) -> dict[str, Any]:
    """What is in the file of this name, without its suffix."""
    content: dict[str, Any] = json.loads((SHAPES / f"{name}.json").read_text())
    return content


def meta_model(config: dict[str, Any]) -> PreTrainedModel:
    """The model that transformers builds of it, without memory for its weights, none of them quantised."""
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**plain))
    return model
