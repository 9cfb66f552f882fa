"""The DeepSpeed JSON of a training: the file says how it runs, the profile what it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.training.settings import TrainingRecipe, TrainingRuntime

CHECKOUT = Path(__file__).resolve().parents[2]
HOW = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "comms_logger",
        "communication_data_type",
        "dump_state",
        "flops_profiler",
        "memory_breakdown",
        "steps_per_print",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
"""Top-level keys of a DeepSpeed JSON that say only how a training runs."""
FOREIGN = ("zero_quantized", "mics_", "zero_hpz", "zenflow", "super_offload")
"""Beginnings of keys of `zero_optimization` that go beyond where numbers live, or that checkpoints could not follow."""


def deepspeed_config(recipe: TrainingRecipe, runtime: TrainingRuntime, world_size: int) -> dict[str, Any]:
    """The named JSON with the profile's values put in.

    Raises:
        BadInputError: the file is missing, or states something that the profile decides in another way.
    """
    path = CHECKOUT / runtime.deepspeed_config
    if not path.is_file():
        raise BadInputError(f"deepspeed_config {path} does not exist; configs/deepspeed/ has the ones that ship")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    optimizer = recipe.optimizer
    # A step has as many micro-batches as its documents need, so DeepSpeed's own count is one of nothing.
    batch = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
    }
    profile: dict[str, Any] = {
        "gradient_clipping": optimizer.max_grad_norm,
        "bf16": {"enabled": recipe.precision == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.learning_rate,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
                "torch_adam": True,
            },
        },
    }
    for name, value in config.items():
        if name in batch and value != "auto":
            raise BadInputError(f"{path} sets {name}, which follows from the documents of each step; remove it")
        if name in profile and value not in (profile[name], "auto"):
            raise BadInputError(f"{path} says {name}={value}, the profile {profile[name]}; remove it from the file")
        if name not in profile and name not in batch and name not in HOW:
            raise BadInputError(f"{path} sets {name}, which would change the result outside the recipe; remove it")
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (0, 1, 2, 3):
        raise BadInputError(f"{path} names no ZeRO stage; set zero_optimization.stage to 0, 1, 2 or 3")
    for name, value in zero.items():
        if name.startswith(FOREIGN) and value:
            raise BadInputError(f"{path} sets {name}, which rounds numbers or cuts them in its own way; remove it")
        if name.startswith("offload") and value.get("device") not in ("none", "cpu"):
            raise BadInputError(f"{path} offloads to {value.get('device')}; checkpoints know only cpu")
    if zero["stage"] == 0:
        profile |= {
            # The engine clips, since DeepSpeed would keep no norm, and accumulates in float32 by itself.
            "gradient_clipping": 0.0,
            "data_types": {},
            "communication_data_type": config.get("communication_data_type", "fp32"),
        }
    # Each step sets it. A wrapper of ZeRO 0 takes a step when it is made, which at a rate would decay its weights.
    profile["optimizer"]["params"]["lr"] = 0.0
    return {"steps_per_print": 10**12, **config, **batch, **profile}
