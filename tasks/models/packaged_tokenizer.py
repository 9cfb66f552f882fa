"""A packaged file as a tokenizer in a directory: a tokenizer.json cut to what is wanted, or a .model file converted."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers.convert_slow_tokenizer import TikTokenConverter

from tasks.artifacts.errors import BadInputError
from tasks.models.chat_templates import CHAT_TEMPLATES
from tasks.models.stage import TokenizerSource

NUM_LLAMA_SPECIALS = 256


def llama_3_1_specials() -> tuple[str, ...]:
    """Llama 3.1's special tokens in the order of their ids, which start after the 128,000 learned ones."""
    named = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        4: "<|finetune_right_pad_id|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        8: "<|eom_id|>",
        9: "<|eot_id|>",
        10: "<|python_tag|>",
    }
    num_reserved = iter(range(NUM_LLAMA_SPECIALS))
    return tuple(
        named.get(place) or f"<|reserved_special_token_{next(num_reserved)}|>" for place in range(NUM_LLAMA_SPECIALS)
    )


def write_packaged_tokenizer(path: Path, source: TokenizerSource, target: Path) -> None:
    """Reads `path` as `source` says and writes tokenizer files alone.

    Raises:
        BadInputError: the file is not what its name says, or lacks a token that `source` names.
    """
    where = f"{source.package}/{path.name}"
    if path.suffix == ".json":
        backend = _read_json(path, source.drop_ids_from, where)
    else:
        specials = llama_3_1_specials() if source.special_tokens == "llama-3.1" else source.special_tokens
        backend = _read_ranks(path, tuple(specials), source.bos_token, where)
    names = {"bos_token": source.bos_token, "eos_token": source.eos_token, "pad_token": source.pad_token}
    for field, token in names.items():
        # transformers would add it as a new token.
        if token is not None and backend.token_to_id(token) is None:
            raise BadInputError(f"recipe.source.{field} is {token!r}, which {where} does not have; name one of its own")
    backend.save(str(target / "tokenizer.json"))
    config = {
        **names,
        "clean_up_tokenization_spaces": False,
        # Unmarked (see tokenizer_files): whoever puts it beside a config.json marks it if that one needs it.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if source.chat_template is not None:
        template = CHAT_TEMPLATES.get(source.chat_template, source.chat_template)
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def _read_json(path: Path, drop_ids_from: int | None, where: str) -> Tokenizer:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if drop_ids_from is not None:
            _drop(state, drop_ids_from, where)
        tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    except BadInputError:
        raise
    except Exception as error:  # tokenizers raises no class of its own
        raise BadInputError(f"{where} is no tokenizer.json: {' '.join(str(error).split())[:200]}") from error
    return tokenizer


def _drop(state: dict[str, Any], first: int, where: str) -> None:
    learned = max(state["model"]["vocab"].values())
    if learned >= first:
        raise BadInputError(
            f"recipe.source.drop_ids_from is {first}, but the tokens of {where} up to {learned} were learned, and "
            f"merges depend on them; only added tokens can go"
        )
    kept = [token for token in state["added_tokens"] if token["id"] < first]
    if len(kept) == len(state["added_tokens"]):
        raise BadInputError(f"recipe.source.drop_ids_from is {first}, but {where} has no such id; leave it out")
    state["added_tokens"] = kept


class _Ranks(TikTokenConverter):
    """transformers' converter, which asks for the package tiktoken only to read the file."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        """The rank of each token."""
        lines = Path(tiktoken_url).read_bytes().splitlines()
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in map(bytes.split, lines)}


def _read_ranks(path: Path, specials: tuple[str, ...], bos: str | None, where: str) -> Tokenizer:
    try:
        backend: Tokenizer = _Ranks(vocab_file=str(path), extra_special_tokens=specials).converted()
    except (ValueError, binascii.Error) as error:
        raise BadInputError(f"{where} does not have a token in base64 and its rank on each line") from error
    if bos is not None and (bos_id := backend.token_to_id(bos)) is not None:
        start = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
        )
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), start])
    return backend
