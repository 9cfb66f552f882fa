"""Tokenizers in model directories: loaded, saved and compared so that the ids never change on the way.

transformers 5 lets `config.json` decide what `AutoTokenizer` builds. In a directory whose model_type is "qwen2" it
builds a Qwen2Tokenizer around the vocabulary that it finds, with Qwen's pre-tokenizer: a Llama tokenizer saved there
comes back without an error and gives other ids. Two measures here: `load_tokenizer` never asks the config, and
`save_tokenizer` writes a mark that keeps AutoTokenizer from asking it, then proves the reload on `PROBE_TEXTS`.

The mark is an `auto_map` entry in tokenizer_config.json that names no code. Where one exists, transformers leaves the
choice by model_type out; and as the caller trusts no remote code (the default), it builds the class that the file
declares, the plain reader of tokenizer.json. With `trust_remote_code=True` the load fails and names the missing module,
which is loud. The mark is written only where the ids would change without it.

This module imports no torch; saving does, since AutoTokenizer does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import canonical_json, sha256_hex

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""What belongs to a tokenizer in a model directory. Only the first decides ids; the last four are older layouts."""

FORCING_MODEL_TYPES = ("qwen2", "qwen3_5", "gpt2", "llama")
"""Stand-ins for an unknown config.json: two types that impose their class, one that has its own, one that has none."""

PROBE_TEXTS = (
    "The quick brown fox doesn't jump; it's been told they'll rest, we've heard.",
    "1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890 12345678901 123456789012",
    "3.14159 × 2,718.28 = 8539.7; 0x1F, 1e-12, 50%, $1,000,000.00 and 2024-07-26T12:34:56Z",
    "def f(x: int) -> int:\n    if x <= 1:\n\treturn x\n    return f(x - 1) + f(x - 2)  # O(2**n)\n\n\n",
    'for (int i = 0; i < n; ++i) { a[i] += b[i] >> 2; }\r\n<div class="row">&nbsp;</div>\r\n',
    "Привет, мир! Γειά σου. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया। สวัสดีชาวโลก",
    "你好，世界。日本語のテキスト。안녕하세요 세계. Tiếng Việt, Čeština, Türkçe, Íslenska",
    "e\u0301 é ﬁ Ⅷ ½ ａｂｃ １２３ \u200b\ufeff\u00a0",
    "😀 👩‍👩‍👧‍👦 🇫🇷 👍🏽 ∑∫√∞ ≠ → ☃",
    "a  b   c    d\t\te\n\n\nf \n g   \n",
    "   leading and trailing   ",
    "ALLCAPS camelCase snake_case kebab-case I'M YOU'RE HE'LL",
    "<|im_start|>user\nhi<|im_end|>\n<|eot_id|><|begin_of_text|><|endoftext|><s></s>[INST]<unk>",
)
"""Prose, 1 to 12 digits, code, scripts, composed and decomposed forms, emoji, runs of white space, special tokens."""

_MARK = {"AutoTokenizer": ["tokenizer_json_as_it_is.NoRemoteCode", "tokenizer_json_as_it_is.NoRemoteCode"]}
_CALLER_STATE = (
    "name_or_path",
    "is_local",
    "local_files_only",
    "files_loaded",
    "tokenizer_file",
    "added_tokens_decoder",
)
"""Entries of tokenizer_config.json that say how the tokenizer was loaded, not what it is."""

_PROBE_MESSAGES = (
    {"role": "user", "content": "What is 12345 + 678?"},
    {"role": "assistant", "content": "12345 + 678 = 13023"},
)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer exactly as tokenizer.json has it, whatever class the directory names.

    Raises:
        BadInputError: there is no tokenizer.json.
    """
    if not (directory / "tokenizer.json").is_file():
        raise BadInputError(
            f"{directory} has no tokenizer.json; convert its tokenizer with "
            f"transformers (AutoTokenizer.from_pretrained(…).save_pretrained(…)) and give that directory"
        )
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja; equal tokenizers give equal bytes.

    AutoTokenizer then gives the same ids under the directory's config.json or, when that is not there yet, under any:
    both this and the reload by `load_tokenizer` are tried before the files are put in place.

    Raises:
        BadInputError: this version of transformers reloads other ids whatever is written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    configs = _configs_to_withstand(directory)
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        _write(tokenizer, staged, marked=False)
        if not _reloads_alike(tokenizer, staged, configs):
            _write(tokenizer, staged, marked=True)
            for config in configs:
                _check_reload(tokenizer, staged, config)
        reloaded = load_tokenizer(staged)
        assert_same_encoding(tokenizer, reloaded)
        if tokenizer_digest(reloaded) != tokenizer_digest(tokenizer):
            raise BadInputError(f"the tokenizer saved for {directory} comes back changed; report its tokenizer.json")
        for name in TOKENIZER_FILES:
            (directory / name).unlink(missing_ok=True)
            if (staged / name).exists():
                shutil.copyfile(staged / name, directory / name)


def reloads_exactly(directory: Path) -> bool:
    """Whether AutoTokenizer gives the ids of tokenizer.json under the directory's own config.json."""
    return _reloads_alike(load_tokenizer(directory), directory, _configs_to_withstand(directory))


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hex sha256 of what determines ids: normaliser, pre-tokenizer, model, added tokens, post-processor.

    Not part of it: truncation and padding (the last call's), the decoder, the chat template, the names of bos and eos.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {name: state[name] for name in ("normalizer", "pre_tokenizer", "model", "post_processor", "added_tokens")}
    return sha256_hex(canonical_json(parts))


def assert_same_encoding(
    a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast, texts: Sequence[str] = PROBE_TEXTS
) -> None:
    """Compares ids on `texts` and on a rendered conversation, with and without the post-processor's special tokens.

    Raises:
        BadInputError: naming the first text that differs.
    """
    for text in (*texts, *_rendered(a)):
        for add_special_tokens in (False, True):
            ids_a = a.encode(text, add_special_tokens=add_special_tokens)
            ids_b = b.encode(text, add_special_tokens=add_special_tokens)
            if ids_a != ids_b:
                at = next((i for i, pair in enumerate(zip(ids_a, ids_b, strict=False)) if pair[0] != pair[1]), -1)
                raise BadInputError(
                    f"two tokenizers that must agree encode {text!r} differently: {len(ids_a)} and {len(ids_b)} ids, "
                    f"first difference at position {at if at >= 0 else min(len(ids_a), len(ids_b))}; use models that "
                    f"share one tokenizer.json"
                )


def real_vocab_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Largest id plus one. A model may have more rows (padding): those must never be predicted."""
    return max(tokenizer.get_vocab().values()) + 1


def _rendered(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    if not tokenizer.chat_template:
        return []
    return [str(tokenizer.apply_chat_template(list(_PROBE_MESSAGES), tokenize=False))]


def _write(tokenizer: PreTrainedTokenizerFast, directory: Path, *, marked: bool) -> None:
    tokenizer.save_pretrained(directory)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Every call with padding or truncation leaves its setting in the backend.
    state["truncation"] = state["padding"] = None
    _write_json(directory / "tokenizer.json", state, sort_keys=False)
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in (*_CALLER_STATE, "auto_map"):
        config.pop(name, None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if marked:
        config["auto_map"] = _MARK
    _write_json(directory / "tokenizer_config.json", config, sort_keys=True)


def _write_json(file: Path, value: Any, *, sort_keys: bool) -> None:
    file.write_text(json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n", encoding="utf-8")


def _configs_to_withstand(directory: Path) -> list[str]:
    """The texts of config.json under which a reload must give the same ids."""
    if (directory / "config.json").is_file():
        return [(directory / "config.json").read_text(encoding="utf-8")]
    return [json.dumps({"model_type": model_type}) for model_type in FORCING_MODEL_TYPES]


def _reloads_alike(tokenizer: PreTrainedTokenizerFast, directory: Path, configs: Sequence[str]) -> bool:
    try:
        for config in configs:
            _check_reload(tokenizer, directory, config)
    except BadInputError:
        return False
    return True


def _check_reload(tokenizer: PreTrainedTokenizerFast, directory: Path, config: str) -> None:
    """Reloads the directory's tokenizer through AutoTokenizer beside this config.json and compares."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder)
        for name in TOKENIZER_FILES:
            if (directory / name).is_file():
                (probe / name).symlink_to((directory / name).resolve())
        (probe / "config.json").write_text(config, encoding="utf-8")
        reloaded = AutoTokenizer.from_pretrained(probe, trust_remote_code=False)
    if not isinstance(reloaded, PreTrainedTokenizerFast):
        raise BadInputError(f"{directory}: AutoTokenizer builds a {type(reloaded).__name__} without tokenizer.json")
    assert_same_encoding(tokenizer, reloaded)
    if len(reloaded) != len(tokenizer):
        raise BadInputError(f"{directory}: AutoTokenizer gives {len(reloaded)} tokens instead of {len(tokenizer)}")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
        if getattr(reloaded, name) != getattr(tokenizer, name):
            raise BadInputError(f"{directory}: AutoTokenizer gives another {name} than tokenizer_config.json")
