"""What config.json becomes, and what has no exact counterpart and is refused.

In transformers 5.23 the two models differ in this: Qwen2 always has biases on q, k and v and never elsewhere, Llama has
them on all four projections of the attention or on none, and on the MLP or not; Llama may give the heads another size,
Qwen2 may let layers attend to a window only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import LlamaConfig, Qwen2Config

from tasks.artifacts.errors import BadInputError

PRUNABLE = ("llama", "qwen2")
"""Model types whose layers are "model.layers.N." and alike, so that one may go without the others noticing."""
_SAME_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def check_plain(values: Mapping[str, Any]) -> None:
    """Refuses weights that are not plain numbers.

    Raises:
        BadInputError: the weights are quantised.
    """
    if values.get("quantization_config"):
        raise BadInputError(
            "the model's weights are quantised; give reshape the model as it was before, or a copy of it"
        )


def as_qwen2(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the Qwen2 model that computes what the Llama model with the config `values` does.

    Raises:
        BadInputError: it is no Llama model, or one with parts that Qwen2 does not have.
    """
    if values.get("model_type") != "llama":
        raise BadInputError(
            f"recipe.architecture is qwen2, which is made of a llama model, and this one is a "
            f"{values.get('model_type')}; leave architecture out or give another model"
        )
    llama = LlamaConfig.from_dict(dict(values))
    inexact = ", ".join(f"{name}={found}" for name, found in _inexact(llama).items())
    if inexact:
        raise BadInputError(
            f"the Llama model has {inexact}, which no Qwen2 model has; keep it a Llama model, without "
            f"recipe.architecture"
        )
    qwen2 = Qwen2Config(**{name: getattr(llama, name) for name in _SAME_FIELDS}, use_sliding_window=False)
    return {
        **qwen2.to_diff_dict(),
        "architectures": ["Qwen2ForCausalLM"],
        "dtype": values.get("dtype") or values.get("torch_dtype") or "float32",
    }


def _inexact(llama: LlamaConfig) -> dict[str, Any]:
    """Settings that differ from all that a Qwen2 model can be."""
    head_size = llama.hidden_size // llama.num_attention_heads
    rope: Mapping[str, Any] = llama.rope_parameters or {}
    allowed = {
        "attention_bias": (llama.attention_bias, (False,)),
        "mlp_bias": (llama.mlp_bias, (False,)),
        "head_dim": (llama.head_dim, (head_size,)),
        "pretraining_tp": (getattr(llama, "pretraining_tp", None), (None, 1)),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), (1.0,)),
    }
    return {name: found for name, (found, exact) in allowed.items() if found not in exact}


def with_layers(values: Mapping[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    """The config.json of the model that has only the layers `keep`.

    Raises:
        BadInputError: there is no such layer, or the model's layers are not known to be alike.
    """
    if values.get("model_type") not in PRUNABLE:
        raise BadInputError(
            f"recipe.keep_layers is for models of the types {', '.join(PRUNABLE)}, and this one is a "
            f"{values.get('model_type')}; leave keep_layers out"
        )
    num_layers = int(values["num_hidden_layers"])
    if keep[-1] >= num_layers:
        raise BadInputError(
            f"recipe.keep_layers names layer {keep[-1]}, and the model has {num_layers}, numbered from 0; name those"
        )
    pruned = {**values, "num_hidden_layers": len(keep)}
    if values.get("layer_types") is not None:
        pruned["layer_types"] = [values["layer_types"][layer] for layer in keep]
    elif values.get("use_sliding_window"):
        raise BadInputError(
            "config.json says from which layer on a window is used (max_window_layers), not which layers use it "
            "(layer_types); save the model once with transformers 5, which writes the list"
        )
    return pruned
