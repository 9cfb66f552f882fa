"""What a fusion gained or lost: bits per byte and stops of the base, of each branch and of the fusion, on one set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tasks.fuse.stage import BASE, FUSED
from tasks.modeling.bits_per_byte import bits_per_byte, bits_per_byte_of_result
from tasks.modeling.model_files import load_causal_lm, stored_dtype
from tasks.modeling.stopping import compared_stops, stopped_prompts
from tasks.modeling.tokenizer_files import load_tokenizer


def measure_fusion(
    fused: Path,
    base: Path,
    branches: dict[str, Path],
    chat: Path,
    device: torch.device,
    *,
    before_model: Callable[[], None],
) -> dict[str, Any]:
    """The metrics that the gates judge. One model after another is loaded, in the dtype that it is stored in, after a
    call of `before_model`.

    `bits_per_byte` by model ("base", "fused" and the branches' names) and kind of text; `bits_per_byte_ratio` by kind,
    over the branch that is best on it (over the base where there are no branches); `stops` of the fusion against those
    of the model in `chat`. Where the fusion's logits are not finite its values are None, and the gate fails.

    Raises:
        BadInputError: the logits of the base or of a branch are not finite.
    """
    parents: dict[str, dict[str, float]] = {}
    fusion: dict[str, float | None] = {}
    stops: dict[Path, list[bool]] = {}
    for name, directory in {BASE: base, **branches, FUSED: fused}.items():
        before_model()
        model = load_causal_lm(directory, dtype=stored_dtype(directory), device=device)
        tokenizer = load_tokenizer(directory)
        if name == FUSED:
            fusion = bits_per_byte_of_result(model, tokenizer)
        else:
            parents[name] = bits_per_byte(model, tokenizer)
        if directory in (chat, fused):
            stops[directory] = stopped_prompts(model, tokenizer)
        del model
    rivals = [parents[name] for name in branches] or [parents[BASE]]
    return {
        "bits_per_byte": {**parents, FUSED: fusion},
        "bits_per_byte_ratio": {
            kind: None if value is None else value / min(rival[kind] for rival in rivals)
            for kind, value in fusion.items()
        },
        "stops": compared_stops(stops[chat], stops[fused]),
    }
