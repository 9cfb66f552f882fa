"""What is said of a model whose logits are not numbers. No torch."""

from __future__ import annotations

from tasks.artifacts.errors import BadInputError


def broken_numbers(model: str, where: str, dtype: str) -> BadInputError:
    """Any comparison with NaN is false, so that such a model would answer at chance and pass its gates."""
    return BadInputError(
        f"the model {model} gives logits that are not finite on {where}; its weights are broken or overflow in "
        f"{dtype}: make it again, choose another evaluate.recipe.dtype, or leave it out of the comparison"
    )
