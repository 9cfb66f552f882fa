"""What a fusion gained or lost: bits per byte and stops of the base, of each branch and of the fusion, on one set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.modeling.bits_per_byte import bits_per_byte
from tasks.modeling.model_files import load_causal_lm, stored_dtype
from tasks.modeling.stopping import compared_stops, stopped_prompts
from tasks.modeling.tokenizer_files import load_tokenizer


def measure_fusion(
    fused: Path, base: Path, branches: dict[str, Path], chat: Path, device: torch.device
) -> dict[str, Any]:
    """The metrics that the gates judge. One model after another is loaded, in the dtype that it is stored in.

    `bits_per_byte` by model ("base", "fused" and the branches' names) and kind of text; `bits_per_byte_ratio` by kind,
    over the branch that is best on it (over the base where there are no branches); `stops` of the fusion against those
    of the model in `chat`.
    """
    bits: dict[str, dict[str, float]] = {}
    stops: dict[Path, list[bool]] = {}
    for name, directory in {"base": base, **branches, "fused": fused}.items():
        model = load_causal_lm(directory, dtype=stored_dtype(directory), device=device)
        tokenizer = load_tokenizer(directory)
        bits[name] = bits_per_byte(model, tokenizer)
        if directory in (chat, fused):
            stops[directory] = stopped_prompts(model, tokenizer)
        del model
    parents = [bits[name] for name in branches] or [bits["base"]]
    return {
        "bits_per_byte": bits,
        "bits_per_byte_ratio": {
            kind: value / min(parent[kind] for parent in parents) for kind, value in bits["fused"].items()
        },
        "stops": compared_stops(stops[chat], stops[fused]),
    }
