"""The DeepSpeed JSON of a training: the file says how it runs, the profile what it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from tasks.artifacts.errors import BadInputError
from tasks.runtime.declare import StageConfig
from tasks.training.settings import TrainingRecipe, TrainingRuntime

CHECKOUT = Path(__file__).resolve().parents[2]
HOW = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "comms_logger",
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
FOREIGN = ("zero_quantized", "mics_", "zero_hpz", "zenflow")
"""Beginnings of keys of `zero_optimization` that go beyond where numbers live, or that checkpoints could not follow."""
NEEDED = ("load_from_fp32_weights", "compute_grad_norm")
"""Keys of `zero_optimization` that are true by default: without the first a resumed training begins from rounded
weights, without the second there is no norm to judge."""
OFFLOADED = frozenset({"device", "pin_memory"})
"""Keys of `offload_optimizer` and `offload_param`. The others are NVMe's, or cut the optimiser in two (`ratio`,
`super_offload`), which checkpoints could not follow."""


class TrainingStageConfig(StageConfig):
    """Base of the config of a stage that trains: its DeepSpeed JSON is checked before anything is launched."""

    recipe: TrainingRecipe
    runtime: TrainingRuntime = TrainingRuntime()

    @model_validator(mode="after")
    def _deepspeed_fits_the_recipe(self) -> Self:
        try:
            deepspeed_config(self.recipe, self.runtime, self.runtime.num_processes * self.runtime.num_nodes)
        except BadInputError as error:
            raise ValueError(str(error)) from error
        return self


def deepspeed_config(recipe: TrainingRecipe, runtime: TrainingRuntime, world_size: int) -> dict[str, Any]:
    """The named JSON with the profile's values put in.

    Raises:
        BadInputError: the file is missing or malformed, or states something that the profile decides in another way.
    """
    path = CHECKOUT / runtime.deepspeed_config
    config = _read(path)
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
        # Else ZeRO 1 to 3 sum bfloat16 gradients over processes in bfloat16, and how many there are changes the result.
        "communication_data_type": "fp32",
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
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise BadInputError(f"{path} names no ZeRO stage; set zero_optimization.stage to 0, 1, 2 or 3")
    for name, value in zero.items():
        if name.startswith(FOREIGN) and value:
            raise BadInputError(f"{path} sets {name}, which rounds numbers or cuts them in its own way; remove it")
        if name in NEEDED and value is not True:
            raise BadInputError(f"{path} sets {name}={value}, but the training needs it to be true; remove it")
        if not name.startswith("offload"):
            continue
        if not isinstance(value, dict):
            raise BadInputError(f'{path} sets {name}={value}; write {{"device": "cpu"}} there, or remove it')
        if value.get("device") not in ("none", "cpu"):
            raise BadInputError(f"{path} offloads to {value.get('device')}; checkpoints know only cpu")
        for key in value.keys() - OFFLOADED:
            raise BadInputError(
                f"{path} sets {key} in {name}, where only {' and '.join(sorted(OFFLOADED))} may stand; remove it"
            )
    if zero["stage"] == 0:
        profile |= {
            # The engine clips, since DeepSpeed would keep no norm, and accumulates in float32 by itself.
            "gradient_clipping": 0.0,
            "data_types": {},
        }
    # Each step sets it. A wrapper of ZeRO 0 takes a step when it is made, which at a rate would decay its weights.
    profile["optimizer"]["params"]["lr"] = 0.0
    return {"steps_per_print": 10**12, **config, **batch, **profile}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInputError(f"deepspeed_config {path} does not exist; configs/deepspeed/ has the ones that ship")
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{path} is no valid JSON ({error}); correct it") from error
    if not isinstance(config, dict):
        raise BadInputError(f"{path} must hold an object; configs/deepspeed/ has the ones that ship")
    return config
