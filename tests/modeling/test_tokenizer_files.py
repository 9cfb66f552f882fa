"""Ids survive saving, whatever model_type the directory has; a change of ids is always noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import copy_tokenizer_files
from tasks.modeling.tokenizer_files import (
    PROBE_TEXTS,
    assert_same_encoding,
    load_tokenizer,
    real_vocab_size,
    reloads_exactly,
    save_tokenizer,
    tokenizer_digest,
)


def _auto(directory: Path, **options: Any) -> Any:
    return AutoTokenizer.from_pretrained(directory, **options)


def _directory(tmp_path: Path, model_type: str | None) -> Path:
    directory = tmp_path / f"of-{model_type}"
    directory.mkdir()
    if model_type is not None:
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return directory


def test_plain_save_into_a_qwen2_directory_reloads_other_ids(
    tmp_path: Path, llama_like: PreTrainedTokenizerFast
) -> None:
    """The fault that this module exists for; when transformers mends it, the mark can go."""
    directory = _directory(tmp_path, "qwen2")
    llama_like.save_pretrained(directory)
    reloaded = _auto(directory)
    assert reloaded.encode("12345") != llama_like.encode("12345")
    assert not reloads_exactly(directory)
    with pytest.raises(BadInputError, match="encode"):
        assert_same_encoding(llama_like, reloaded)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3_5", "qwen3", "llama", "gpt2", "mistral", "gemma2"])
def test_saved_tokenizer_reloads_the_same_ids_under_any_model_type(
    tmp_path: Path, llama_like: PreTrainedTokenizerFast, model_type: str
) -> None:
    directory = _directory(tmp_path, model_type)
    save_tokenizer(llama_like, directory)
    for reloaded in (
        _auto(directory),
        _auto(directory, trust_remote_code=False),
        load_tokenizer(directory),
    ):
        assert_same_encoding(llama_like, reloaded)
        assert reloaded.eos_token_id == llama_like.eos_token_id
        assert reloaded.bos_token_id == llama_like.bos_token_id
        assert reloaded.chat_template == llama_like.chat_template
        assert len(reloaded) == len(llama_like)


def test_tokenizer_saved_before_the_config_is_safe_with_the_config_that_comes(
    tmp_path: Path, llama_like: PreTrainedTokenizerFast
) -> None:
    directory = _directory(tmp_path, None)
    save_tokenizer(llama_like, directory)
    for model_type in ("qwen2", "gpt2", "llama"):
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert_same_encoding(llama_like, _auto(directory))


def test_mark_is_left_out_where_it_is_not_needed_and_refuses_remote_code_where_it_is(
    tmp_path: Path, llama_like: PreTrainedTokenizerFast
) -> None:
    free, forced = _directory(tmp_path, "llama"), _directory(tmp_path, "qwen2")
    save_tokenizer(llama_like, free)
    save_tokenizer(llama_like, forced)
    assert "auto_map" not in json.loads((free / "tokenizer_config.json").read_text())
    assert "auto_map" in json.loads((forced / "tokenizer_config.json").read_text())
    with pytest.raises(OSError, match="tokenizer_json_as_it_is"):
        _auto(forced, trust_remote_code=True)


def test_what_transformers_saves_again_from_a_marked_directory_stays_right(
    tmp_path: Path, llama_like: PreTrainedTokenizerFast
) -> None:
    first, second = _directory(tmp_path, "qwen2"), _directory(tmp_path, "qwen3_5")
    save_tokenizer(llama_like, first)
    _auto(first).save_pretrained(second)
    assert_same_encoding(llama_like, _auto(second))


def test_saving_is_a_fixed_point_and_ignores_the_last_call(tmp_path: Path, llama_like: PreTrainedTokenizerFast) -> None:
    first, second = _directory(tmp_path, "qwen2"), tmp_path / "again"
    save_tokenizer(llama_like, first)
    loaded = load_tokenizer(first)
    second.mkdir()
    (second / "config.json").write_bytes((first / "config.json").read_bytes())
    loaded.pad_token = None
    loaded(["1 2 3", "4"], truncation=True, max_length=2)
    save_tokenizer(loaded, second)
    names = sorted(path.name for path in first.iterdir())
    assert names == ["chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_digest_follows_ids_and_nothing_else(
    tmp_path: Path, llama_like: PreTrainedTokenizerFast, qwen_like: PreTrainedTokenizerFast
) -> None:
    save_tokenizer(llama_like, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_digest(loaded) == tokenizer_digest(llama_like) != tokenizer_digest(qwen_like)
    loaded.chat_template = "{{ messages }}"
    loaded(["a", "b"], padding=False, truncation=True, max_length=1)
    assert tokenizer_digest(loaded) == tokenizer_digest(llama_like)
    loaded.add_tokens(["<new>"])
    assert tokenizer_digest(loaded) != tokenizer_digest(llama_like)


def test_copy_keeps_bytes_for_the_same_model_type_and_ids_for_another(
    tmp_path: Path, llama_like: PreTrainedTokenizerFast
) -> None:
    source = _directory(tmp_path, "llama")
    llama_like.save_pretrained(source)
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin/config.json").write_text('{"model_type": "llama"}')
    copy_tokenizer_files(source, tmp_path / "twin")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "twin" / name).read_bytes() == (source / name).read_bytes()
    other = _directory(tmp_path, "qwen2")
    copy_tokenizer_files(source, other)
    assert_same_encoding(llama_like, _auto(other))


def test_directory_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_real_vocab_size_counts_added_tokens(llama_like: PreTrainedTokenizerFast) -> None:
    assert real_vocab_size(llama_like) == max(llama_like.get_vocab().values()) + 1 == len(llama_like)


def test_probe_texts_hold_all_digit_counts() -> None:
    runs = {len(word) for text in PROBE_TEXTS for word in text.split() if word.isdigit() and word.isascii()}
    assert runs >= set(range(1, 13))


def test_importing_the_module_loads_no_torch() -> None:
    code = "import sys, tasks.modeling.tokenizer_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
