"""Whether a trained model has the trunk of the one whose vocabulary it takes."""

from __future__ import annotations

from transformers import PreTrainedModel

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import vocabulary_weights


def check_same_architecture(trained: PreTrainedModel, original: PreTrainedModel) -> None:
    """Compares names and shapes of all tensors, but for the number of rows of embedding and head.

    Reads no values, so that models without weights will do.

    Raises:
        BadInputError: naming the first tensor that differs.
    """
    theirs, ours = _shapes(trained), _shapes(original)
    if theirs.keys() != ours.keys():
        raise BadInputError(
            f"trained and original are not the same architecture: only one of them has "
            f"{sorted(theirs.keys() ^ ours.keys())[0]}; give the model that the trained one was transplanted from"
        )
    for name, shape in ours.items():
        if theirs[name] != shape:
            raise BadInputError(
                f"{name} has shape {list(theirs[name])} in the trained model and {list(shape)} in the original (number "
                f"of tokens apart); give the model that the trained one was transplanted from"
            )


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """By name of the parameter; without the first dimension where that counts tokens."""
    vocabulary = {id(weight) for weight in vocabulary_weights(model)}
    return {
        name: tuple(weight.shape[1:] if id(weight) in vocabulary else weight.shape)
        for name, weight in model.named_parameters()
    }
