"""One DeepSpeed engine around a model and its fused loss: step, judge, save, load, gather.

A step has any number of micro-batches, told to DeepSpeed through its accumulation boundary. The loss is normalised by
the label tokens of the whole optimiser step; DeepSpeed averages gradients over processes, which a factor undoes.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.artifacts.errors import CorruptArtifactError, MediusError
from tasks.training.batches import Batch
from tasks.training.deepspeed_config import deepspeed_config
from tasks.training.head import LanguageModelLoss
from tasks.training.learning_groups import LearningGroups
from tasks.training.losses import PARTS, HeadForm, LossWeights
from tasks.training.pickles import refuse_foreign_pickles
from tasks.training.processes import Processes
from tasks.training.settings import Learning, TrainingRecipe, TrainingRuntime
from tasks.training.universal import UniversalState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STATE = "state"
JUDGE_ALONE = LossWeights(forward_kl=1.0, ce=1.0)
UNCUT = frozenset(
    {
        "allgather_bucket_size",
        "contiguous_gradients",
        "overlap_comm",
        "pin_memory",
        "reduce_bucket_size",
        "reduce_scatter",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_prefetch_bucket_size",
    }
)
"""Keys of `zero_optimization` that say how numbers travel: the files of a checkpoint do not show them."""
_JUDGED = [PARTS.index("forward_kl"), PARTS.index("ce")]


class DivergedError(MediusError):
    """A loss or a gradient's norm is not finite, or beyond what the guard allows. Not retried: the same step would do
    the same."""


class DivergedMicroBatchError(DivergedError):
    """One micro-batch's loss is not finite. `index` is its group: place in the step × processes + rank."""

    def __init__(self, index: int, loss: float) -> None:
        super().__init__(f"the loss of micro-batch {index} is {loss}")
        self.index = index


@dataclass(frozen=True)
class StepResult:
    """Of one optimiser step: means per target token over all processes, and the gradient's norm before clipping.

    `parts` are the unweighted parts of the loss by their name in PARTS.
    """

    loss: float
    parts: dict[str, float]
    grad_norm: float


class TrainingEngine:
    """The engine of one process. All processes call every method together."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        form: HeadForm,
        weights: LossWeights,
        recipe: TrainingRecipe,
        runtime: TrainingRuntime,
        processes: Processes,
    ) -> None:
        config = deepspeed_config(recipe, runtime, processes.world_size)
        self.zero_stage: int = config["zero_optimization"]["stage"]
        self._cut = _without(config["zero_optimization"], UNCUT)
        self._weights = weights
        self._processes = processes
        self._seed = recipe.seed
        self._max_grad_norm = recipe.optimizer.max_grad_norm
        self.group_losses: list[float] = []
        """Of the last step, whether it ended or raised: the summed loss of each group, one of a process that only kept
        in step included."""

        torch.manual_seed(recipe.seed)
        if runtime.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        module = LanguageModelLoss(model, form)
        ends: list[Any] = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
        decay = recipe.optimizer.weight_decay
        self._groups = LearningGroups(module.parameters(), ends, decay, frozen=recipe.frozen_embedding)
        self.engine = self._initialize(module, self._groups.groups, config)
        if self.zero_stage == 0:
            # Its bfloat16 wrapper accumulates in the weights' dtype and refuses float32; torch does as it is told.
            for parameter in (each for each in module.parameters() if each.requires_grad):
                parameter.grad = None
                parameter.grad_dtype = torch.float32
        self._basic = self.engine.basic_optimizer
        self._groups.attach(self._basic)
        for _, master in self.masters():
            # Made now rather than in a group's first step: what does not fit fails at once, and a checkpoint has the
            # state of groups that have not learnt yet.
            self._basic.state[master] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }
        if self.zero_stage in (1, 2):
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        self._universal = UniversalState(self)

    def _initialize(self, module: nn.Module, groups: list[dict[str, Any]], config: dict[str, Any]) -> Any:
        # Imported here because it reads DS_ACCELERATOR, which `join` sets.
        import deepspeed
        from deepspeed.ops.op_builder import ShareMemCommBuilder
        from deepspeed.runtime import bf16_optimizer
        from deepspeed.runtime.engine import DeepSpeedEngine

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # ZeRO-3 calls collectives by names that torch 2.13 deprecates, several times a step.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        # A shared-memory collective that would be compiled for minutes at the first start; gloo does the same work.
        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
        # ZeRO-1 in bfloat16 prints memory at a dozen places, each after a garbage collection: 4 s of 4.6 in a test.
        bf16_optimizer.see_memory_usage = lambda *_args, **_kwargs: None
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        self._deepspeed = deepspeed
        engine = deepspeed.initialize(model=module, model_parameters=groups, config=config)[0]
        found = (type(engine), engine.dp_world_size, engine.zero_optimization_stage())
        assert found == (DeepSpeedEngine, self._processes.world_size, self.zero_stage), found
        return engine

    def step(
        self,
        batches: Sequence[Batch],
        num_targets: int,
        rate: float,
        *,
        learning: Learning = "all",
        check_loss: Callable[[float], None] = lambda _loss: None,
    ) -> StepResult:
        """One optimiser step over this process's micro-batches, of which every process has the same number.

        `num_targets` is that of all processes together. Where not all parameters are `learning`, norm and clipping are
        of those that do, and weights and optimiser state of the others stay as they are.
        `check_loss` is given the step's loss before anything is updated, and may raise.

        Raises:
            DivergedMicroBatchError: with the group of a micro-batch whose loss is not finite; nothing was updated.
            DivergedError: the gradient's norm is not finite.
        """
        self._groups.learning = learning
        for group in self._basic.param_groups:
            group["lr"] = rate
        self.engine.train()
        scale = self._processes.world_size / max(1, num_targets)
        rank, world_size = self._processes.rank, self._processes.world_size
        # One cell a micro-batch of any process, so that the sum does not depend on the number of processes.
        shape = (1 + len(PARTS), len(batches) * world_size)
        table = torch.zeros(shape, dtype=torch.float64, device=self._processes.device)
        for index, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(index + 1 == len(batches))
            loss, sums_4 = self.engine(batch.to(self._processes.device), self._weights)
            table[0, index * world_size + rank] = loss.detach()
            table[1:, index * world_size + rank] = sums_4
            self.engine.backward(loss * scale, scale_wrt_gas=False)
        table = self._processes.sum(table)
        self.group_losses = table[0].tolist()
        bad = torch.nonzero(~torch.isfinite(table[0]))
        if len(bad):
            raise DivergedMicroBatchError(int(bad[0]), float(table[0, bad[0]]))
        mean, *parts = (table.sum(1) / max(1, num_targets)).tolist()
        check_loss(mean)
        norm = self._update()
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient's norm is {norm}")
        return StepResult(mean, dict(zip(PARTS, parts, strict=True)), norm)

    def _update(self) -> float:
        """Clips and steps; the norm before clipping."""
        if self.zero_stage == 0:
            norm = float(nn.utils.clip_grad_norm_(self.engine.module.parameters(), self._max_grad_norm))
            if math.isfinite(norm):
                self.engine.step()
            return norm
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    @torch.no_grad()
    def judge(self, batch: Batch) -> Tensor:
        """[Σ forward KL, Σ CE, number of targets] of this process's batch at temperature 1, on the CPU."""
        self.engine.eval()
        _, sums_4 = self.engine(batch.to(self._processes.device), JUDGE_ALONE)
        return torch.cat((sums_4.cpu()[_JUDGED], torch.tensor([len(batch.positions_N)], dtype=torch.float64)))

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The model's parameters by name, each whole on every process while it is looked at."""
        for name, parameter in self.engine.module.model.named_parameters():
            with self._deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()

    # Checkpoints

    @property
    def shape(self) -> dict[str, Any]:
        """What the files of `save` are cut by; a checkpoint of another shape is loaded by `load_universal`."""
        return {"world_size": self._processes.world_size, "zero_optimization": self._cut}

    def masters(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """The optimiser's float32 tensors on this process, each with its parameter group."""
        if self.zero_stage == 3:
            optimizer = self.engine.optimizer
            for index, master in enumerate(optimizer.fp32_partitioned_groups_flat):
                yield self._basic.param_groups[optimizer.sub_group_to_group_id[index]], master
            return
        for group in self._basic.param_groups:
            for master in group["params"]:
                yield group, master

    def save(self, directory: Path) -> None:
        """Writes the engine's and the random generators' state; every process its part."""
        directory.mkdir(parents=True, exist_ok=True)
        if self.zero_stage == 0:
            self._universal.write(directory)
        else:
            self.engine.save_checkpoint(str(directory), tag=STATE)
        if self._processes.is_main:
            self._universal.write_steps(directory)
        generators = {"cpu": torch.get_rng_state()}
        if self._processes.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state()
        torch.save(generators, directory / f"rng-{self._processes.rank}.pt")
        self._processes.barrier()

    def load(self, directory: Path) -> None:
        """Restores, bit for bit, what `save` wrote under the same shape. Raises CorruptArtifactError."""
        refuse_foreign_pickles(directory)
        if self.zero_stage == 0:
            self._universal.load(directory)
        elif self.engine.load_checkpoint(str(directory), tag=STATE)[0] is None:
            raise CorruptArtifactError(f"DeepSpeed cannot read the checkpoint in {directory}; delete it and run again")
        generators = torch.load(directory / f"rng-{self._processes.rank}.pt", weights_only=True)
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"])

    def load_universal(self, directory: Path, step: int) -> None:
        """Restores what `save` wrote under another world size, ZeRO stage or offload, after `universal.convert`.

        The random generators, of which the processes have other numbers now, start anew from the seed and `step`.
        """
        self._universal.load(directory)
        torch.manual_seed(int(np.random.SeedSequence([self._seed, step, self._processes.rank]).generate_state(1)[0]))


def _without(settings: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Less the keys of these names, in blocks within it, too."""
    return {
        key: _without(value, names) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in names
    }
