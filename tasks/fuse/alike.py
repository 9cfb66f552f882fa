"""Whether models can be merged tensor by tensor: rows of the same tokens, tensors that are used in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig

from tasks.artifacts.errors import BadInputError
from tasks.fuse.stage import BASE
from tasks.modeling.model_files import num_rows, read_json, weights_directory
from tasks.modeling.stopping import first_ends
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size, tokenizer_digest

MEANING = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "tie_word_embeddings",
    "num_experts_per_tok",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
)
"""Fields of a config that say what equally named tensors of one shape compute: 4 heads of 32 are no 2 heads of 64."""
TOLERATED = ("rms_norm_eps",)
"""Fields that say little, and in which models differ that were merged with success: Qwen2.5-14B has 1e-5 and its
Instruct model 1e-6."""


def check_alike(directories: Mapping[str, Path], chat_from: str, say: Callable[[str], None]) -> None:
    """Refuses models of other tensors or with rows of other tokens: mergekit would mix those or cut them to size. And
    a model to chat like that does not end as all branches do: the fusion would write their end, and go on.

    `directories` are the models by name, BASE and `chat_from` among them. `say` is told of differences that are let
    pass.

    Raises:
        BadInputError: naming the models and what differs.
    """
    base, *others = (
        _Model(name, directories[name]) for name in (BASE, *(name for name in directories if name != BASE))
    )
    for other in others:
        if other.digest != base.digest:
            raise BadInputError(
                f"{BASE} and {other.name} have different tokenizers ({base.digest[:12]} and {other.digest[:12]}); "
                f"bring both into one vocabulary (surgeon, mode: revert) before they are fused"
            )
        if other.rows != base.rows:
            raise BadInputError(
                f"{BASE} has {base.rows} embedding rows and {other.name} {other.rows}; make the rows equal before they "
                f"are fused (the padding of the one that a surgery made)"
            )
        if only := sorted(other.shapes.keys() ^ base.shapes.keys()):
            raise BadInputError(
                f"only one of {BASE} and {other.name} has {only[0]}; fuse models of one architecture, all with tied "
                f"heads or none"
            )
        for field in MEANING:
            if other.config[field] != base.config[field]:
                raise BadInputError(
                    f"{field} is {base.config[field]} in {BASE} and {other.config[field]} in {other.name}, so that "
                    f"their tensors mean different things; fuse models of one architecture and one config"
                )
        for name, shape in base.shapes.items():
            if other.shapes[name] != shape:
                raise BadInputError(
                    f"{name} has the shape {list(shape)} in {BASE} and {list(other.shapes[name])} in {other.name}; "
                    f"fuse models of one architecture and size"
                )
        for field in TOLERATED:
            if other.config[field] != base.config[field]:
                say(f"{field} is {base.config[field]} in {BASE} and {other.config[field]} in {other.name}")
    chat = next(model for model in (base, *others) if model.name == chat_from)
    if others and (missing := frozenset.intersection(*(other.ends for other in others)) - chat.ends):
        raise BadInputError(
            f"all branches end an answer with {', '.join(chat.tokens(missing))}, and {chat_from}, whose token ids the "
            f"fusion gets, with {', '.join(chat.tokens(chat.ends)) or 'nothing'}, so that it might never stop; set "
            f"fuse.recipe.chat_from to one of {', '.join(other.name for other in others)}"
        )


class _Model:
    """What is compared of a model."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.tokenizer = tokenizer = load_tokenizer(directory)
        weights = weights_directory(directory)
        self.digest = tokenizer_digest(tokenizer)
        self.rows = num_rows(weights)
        if self.rows < real_vocab_size(tokenizer):
            raise BadInputError(
                f"{name} has {self.rows} rows and a tokenizer with {real_vocab_size(tokenizer)} ids; give it its own "
                f"tokenizer"
            )
        self.shapes = tensor_shapes(weights)
        # Not the file: versions of transformers write the same rope as rope_theta or as rope_parameters.
        config = AutoConfig.from_pretrained(weights, trust_remote_code=False).get_text_config()
        self.config: dict[str, Any] = {field: getattr(config, field, None) for field in (*MEANING, *TOLERATED)}
        stored = weights / "generation_config.json"
        generation = read_json(stored).get("eos_token_id") if stored.is_file() else None
        self.ends = first_ends(generation, config.eos_token_id, tokenizer.eos_token_id)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(sorted(ids))]


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Of all tensors in a model's safetensors, from their headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes
