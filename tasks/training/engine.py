"""One DeepSpeed engine around a model and its fused loss: step, evaluate, save, load, gather.

The loss is normalised by the label tokens of the whole optimiser step. DeepSpeed averages gradients over processes and
would divide by accumulation steps; the first is undone by a factor, the second is switched off.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.artifacts.errors import BadInputError, CorruptArtifactError, MediusError
from tasks.training.batches import Batch
from tasks.training.losses import LossWeights, Targets, head_loss
from tasks.training.processes import Processes
from tasks.training.settings import TrainingRecipe, TrainingRuntime, accumulation_steps

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHECKOUT = Path(__file__).resolve().parents[2]
STATE = "state"
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
JUDGE_ALONE = LossWeights(kd=1.0, ce=1.0)


class DivergedError(MediusError):
    """A loss or a gradient is no finite number. Not retried: the same step would do the same."""


def _output_matrix(model: PreTrainedModel) -> nn.Parameter:
    weight_RD: nn.Parameter = model.get_output_embeddings().weight
    return weight_RD


class _Head(nn.Module):
    """Holds the output matrix as a parameter of its own, so that ZeRO-3 gathers it once around the fused loss."""

    def __init__(self, weight_RD: nn.Parameter, num_real: int) -> None:
        super().__init__()
        self.weight_RD = weight_RD
        self.num_real = num_real

    def forward(self, hidden_ND: Tensor, targets: Targets, weights: LossWeights) -> tuple[Tensor, Tensor]:
        return head_loss(hidden_ND, self.weight_RD, targets, num_real=self.num_real, weights=weights)


class LanguageModelLoss(nn.Module):
    """A causal language model without its logits: documents and targets in, summed loss out."""

    def __init__(self, model: PreTrainedModel, num_real: int) -> None:
        super().__init__()
        self.model = model
        self.head = _Head(_output_matrix(model), num_real)

    def forward(self, batch: Batch, weights: LossWeights) -> tuple[Tensor, Tensor]:
        """The summed loss, and [Σ KL, Σ CE] without a graph."""
        hidden_BTD = self.model.base_model(input_ids=batch.input_ids_BT, use_cache=False)[0]
        hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch.positions_N)
        loss, sums_2 = self.head(hidden_ND, batch.targets, weights)
        return loss, sums_2


@torch.no_grad()
def check_head(model: PreTrainedModel, num_real: int) -> None:
    """Refuses a model whose logits are not hidden states times the output matrix, or which has too few rows.

    Raises:
        BadInputError: a bias, a cap or a scale follows the head: the fused loss would train another model.
    """
    weight_RD = _output_matrix(model)
    if weight_RD.shape[0] < num_real:
        raise BadInputError(f"the model has {weight_RD.shape[0]} rows for a tokenizer of {num_real} tokens")
    input_ids = torch.arange(min(8, num_real))[None]
    logits = model(input_ids=input_ids, use_cache=False).logits
    plain = model.base_model(input_ids=input_ids, use_cache=False)[0] @ weight_RD.T
    tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
    if (logits - plain).abs().max() > tolerance * (1 + logits.abs().max()):
        raise BadInputError(
            f"{model.config.model_type} changes its logits after the output matrix (a bias, a cap or a scale), which "
            f"the fused loss does not know; use a model with a plain head"
        )


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
    profile = {
        "train_batch_size": recipe.rows_per_step,
        "train_micro_batch_size_per_gpu": runtime.micro_batch_rows,
        "gradient_accumulation_steps": accumulation_steps(recipe, runtime, world_size),
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
        if name in profile and value not in (profile[name], "auto"):
            raise BadInputError(f"{path} says {name}={value}, the profile {profile[name]}; remove it from the file")
        if name not in profile and name not in HOW:
            raise BadInputError(f"{path} sets {name}, which would change the result outside the recipe; remove it")
    if config.get("zero_optimization", {}).get("stage", 0) not in (1, 2, 3):
        raise BadInputError(f"{path} names no ZeRO stage; set zero_optimization.stage to 1, 2 or 3")
    return {"steps_per_print": 10**12, **config, **profile}


@dataclass(frozen=True)
class StepResult:
    """Of one optimiser step: means per target token over all processes, and the gradient's norm before clipping."""

    loss: float
    kd: float
    ce: float
    grad_norm: float


class TrainingEngine:
    """The engine of one process. All processes call every method together."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        num_real: int,
        weights: LossWeights,
        recipe: TrainingRecipe,
        runtime: TrainingRuntime,
        processes: Processes,
    ) -> None:
        config = deepspeed_config(recipe, runtime, processes.world_size)
        # Imported here because it reads DS_ACCELERATOR, which `join` sets.
        import deepspeed
        from deepspeed.ops.op_builder import ShareMemCommBuilder
        from deepspeed.runtime.engine import DeepSpeedEngine

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # ZeRO-3 calls collectives by names that torch 2.13 deprecates, several times a step.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        # A shared-memory collective that would be compiled for minutes at the first start; gloo does the same work.
        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        self._deepspeed = deepspeed
        self._weights = weights
        self._processes = processes
        self.accumulation = config["gradient_accumulation_steps"]
        self.zero_stage = config["zero_optimization"]["stage"]

        torch.manual_seed(recipe.seed)
        if runtime.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        module = LanguageModelLoss(model, num_real)
        parameters = list(module.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.optimizer.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.engine: DeepSpeedEngine = deepspeed.initialize(
            model=module, model_parameters=[group for group in groups if group["params"]], config=config
        )[0]
        found = (type(self.engine), self.engine.dp_world_size, self.engine.zero_optimization_stage())
        assert found == (DeepSpeedEngine, processes.world_size, self.zero_stage), found

    def step(self, batches: Sequence[Batch], num_targets: int, rate: float) -> StepResult:
        """One optimiser step over this process's micro-batches.

        `num_targets` is that of all processes together.

        Raises:
            DivergedMicroBatchError: with the index of a micro-batch whose loss is not finite; nothing was updated.
            DivergedError: the gradient's norm is not finite.
        """
        assert len(batches) == self.accumulation, (len(batches), self.accumulation)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.train()
        scale = self._processes.world_size / max(1, num_targets)
        rank, world_size = self._processes.rank, self._processes.world_size
        # One cell a micro-batch of any process, so that the sum does not depend on the number of processes.
        table = torch.zeros(3, self.accumulation * world_size, dtype=torch.float64, device=self._processes.device)
        for index, batch in enumerate(batches):
            loss, sums_2 = self.engine(batch.to(self._processes.device), self._weights)
            table[0, index * world_size + rank] = loss.detach()
            table[1:, index * world_size + rank] = sums_2
            # The product is a tensor of its own: given the module's very output, DeepSpeed 0.19.8 with bf16 and ZeRO-1
            # divides by the accumulation steps in spite of the flag.
            self.engine.backward(loss * scale, scale_wrt_gas=False)
            if index + 1 < len(batches):
                self.engine.step()
        table = self._processes.sum(table)
        bad = torch.nonzero(~torch.isfinite(table[0]))
        if len(bad):
            raise DivergedMicroBatchError(int(bad[0]), float(table[0, bad[0]]))
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient's norm is {norm}")
        loss, kd, ce = (table.sum(1) / max(1, num_targets)).tolist()
        return StepResult(loss, kd, ce, norm)

    @torch.no_grad()
    def judge(self, batch: Batch) -> Tensor:
        """[Σ KL, Σ CE, number of targets] of this process's batch at temperature 1, on the CPU."""
        self.engine.eval()
        _, sums_2 = self.engine(batch.to(self._processes.device), JUDGE_ALONE)
        return torch.cat((sums_2.cpu(), torch.tensor([len(batch.positions_N)], dtype=torch.float64)))

    def save(self, directory: Path) -> None:
        """Writes the engine's and the random generators' state; every process its part."""
        directory.mkdir(parents=True, exist_ok=True)
        self.engine.save_checkpoint(str(directory), tag=STATE)
        generators = {"cpu": torch.get_rng_state()}
        if self._processes.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state()
        torch.save(generators, directory / f"rng-{self._processes.rank}.pt")
        self._processes.barrier()

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote. Raises CorruptArtifactError."""
        path, _ = self.engine.load_checkpoint(str(directory), tag=STATE)
        if path is None:
            raise CorruptArtifactError(f"DeepSpeed cannot read the checkpoint in {directory}; delete it and run again")
        generators = torch.load(directory / f"rng-{self._processes.rank}.pt", weights_only=True)
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"])

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The model's parameters by name, each whole on every process while it is looked at."""
        for name, parameter in self.engine.module.model.named_parameters():
            with self._deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()


class DivergedMicroBatchError(DivergedError):
    """One micro-batch's loss is not finite."""

    def __init__(self, index: int, loss: float) -> None:
        super().__init__(f"the loss of micro-batch {index} is {loss}")
        self.index = index
