"""Parameters that learn only at times, under any sharding of the optimiser: the two ends (input embedding and head)
alone, or the layers between them alone.

Ends that are frozen for a whole training require no gradient, and the optimiser does not hold them.

In the first steps of a training the layers may have to sleep. Instead of switching off `requires_grad`, their
gradients are zeroed before any reduction, so that norm and clipping see the live ones alone, and AdamW finds none for
their groups: it then touches neither weight, moments nor step count. So such a step costs as much as any other.
DeepSpeed 0.19.8 places its hooks once for what requires a gradient then, reduces when as many of them have fired as it
expects, and keeps the last gradients of those that did not (ZeRO-3).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tasks.training.settings import Learning

EMBEDDING = "embedding"


class LearningGroups:
    """Parameter groups of a training: the embedding's, which may be frozen, and the layers', which may sleep."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        embedding: Iterable[nn.Parameter],
        decay: float,
        *,
        frozen: bool = False,
    ) -> None:
        """`embedding`: those of `parameters` that are the input embedding and the head; with `frozen` they require no
        gradient from here on. Vectors are not decayed."""
        self.learning: Learning = "all"
        self._held: list[tuple[Tensor, Tensor | None]] = []
        ends = {id(parameter) for parameter in embedding}
        roles: dict[str, list[nn.Parameter]] = {EMBEDDING: [], "matrices": [], "vectors": []}
        for parameter in parameters:
            role = EMBEDDING if id(parameter) in ends else "matrices" if parameter.ndim >= 2 else "vectors"
            if role == EMBEDDING and frozen:
                parameter.requires_grad_(False)
                continue
            roles[role].append(parameter)
            if role != EMBEDDING:
                parameter.register_hook(self._silence_layer)
        self.groups: list[dict[str, Any]] = [
            {"params": found, "role": role, "weight_decay": 0.0 if role == "vectors" else decay}
            for role, found in roles.items()
            if found
        ]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Watches the optimiser that was made from `groups`."""
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _silence_layer(self, gradient: Tensor) -> Tensor | None:
        return torch.zeros_like(gradient) if self.learning == "embedding" else None

    def _sleeps(self, role: str) -> bool:
        return self.learning == "embedding" and role != EMBEDDING

    def _before(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for master in group["params"] if self._sleeps(group["role"]) else ():
                self._held.append((master, master.grad))
                master.grad = None

    def _after(self, _optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        # Under offload DeepSpeed writes the next step's gradients into the buffers of these.
        for master, gradient in self._held:
            master.grad = gradient
        self._held.clear()
