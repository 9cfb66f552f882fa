"""What the architecture of a model must be for a surgery: a head without a bias, and the trunk of the original."""

from __future__ import annotations

from transformers import PreTrainedModel

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import vocabulary_weights


def check_plain_head(model: PreTrainedModel, role: str) -> None:
    """Refuses a head with a bias, as Phi, GPT-J and CodeGen have one: only its matrix is given to other tokens.

    Reads no values, so that a model without weights will do.

    Raises:
        BadInputError: there is one.
    """
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise BadInputError(
            f"the head of the {role} model ({model.config.model_type}) has a bias, a number for each token that this "
            f"stage cannot give to the tokens of another vocabulary; take a model whose head has none"
        )


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
