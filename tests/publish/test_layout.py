"""A folder that one of the four would not load is refused with what is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tasks.artifacts.errors import BadInputError
from tasks.publish.layout import INDEX, read_layout
from tests.publish.conftest import model_files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in model_files(0, tmp_path).items():
        (folder / name).write_bytes(data)
    return folder


def edit(file: Path, **changes: Any) -> None:
    content = {**json.loads(file.read_bytes()), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def split(model: Path) -> dict[str, str]:
    """Two files and their index."""
    (model / "model.safetensors").unlink()
    places = {"embed": "model-00001-of-00002.safetensors", "head": "model-00002-of-00002.safetensors"}
    for tensor, file in places.items():
        save_file({tensor: np.zeros((8, 4), np.float16)}, model / file)
    (model / INDEX).write_text(json.dumps({"weight_map": places}))
    return places


def refusal(model: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        read_layout(model, "the model")
    text = str(caught.value)
    assert "\n" not in text
    assert "the model" in text
    return text


def test_a_whole_folder_is_described(model: Path) -> None:
    layout = read_layout(model, "the model")
    assert (layout.architecture, layout.num_parameters, layout.dtypes) == ("Qwen2ForCausalLM", 64, ("F32",))
    assert layout.has_template
    split(model)
    (model / "chat_template.jinja").unlink()
    layout = read_layout(model, "the model")
    assert (layout.num_parameters, layout.dtypes, layout.has_template) == (64, ("F16",), False)
    (model / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert read_layout(model, "the model").has_template


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_file_that_is_missing_or_broken_is_named(model: Path, name: str) -> None:
    data = (model / name).read_bytes()
    (model / name).unlink()
    assert f"has no {name}" in refusal(model)
    (model / name).write_bytes(data[:-3])
    assert f"{name} of the model is no JSON" in refusal(model)


@pytest.mark.parametrize("end", [None, [], 8, -1, "</s>", [7, 99]])
def test_an_answer_must_end(model: Path, end: Any) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    assert "answers never end" in refusal(model)


def test_several_ends_are_fine(model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": [7, 0]}')
    assert read_layout(model, "the model").architecture


def test_an_unknown_architecture_is_refused(model: Path) -> None:
    edit(model / "config.json", architectures=["MyForCausalLM"])
    assert "architecture MyForCausalLM" in refusal(model)
    edit(model / "config.json", architectures=None)
    assert "of no name" in refusal(model)


def test_more_ids_than_rows_are_refused(model: Path) -> None:
    edit(model / "config.json", vocab_size=7)
    assert "ids up to 7 and the model 7 rows" in refusal(model)


def test_weights_must_be_whole(model: Path) -> None:
    places = split(model)
    (model / INDEX).unlink()
    assert f"no {INDEX}" in refusal(model)
    (model / INDEX).write_text(json.dumps({"weight_map": {**places, "more": "model-00003.safetensors"}}))
    assert "names model-00003.safetensors, which is not there" in refusal(model)
    (model / INDEX).write_text(json.dumps({"weight_map": {"embed": places["embed"]}}))
    assert f"does not name {places['head']}" in refusal(model)
    (model / INDEX).write_text(json.dumps({"weight_map": {**places, "norm": places["head"]}}))
    assert "do not agree on the tensor norm" in refusal(model)
    save_file({"head": np.zeros(1), "norm": np.zeros(1)}, model / places["head"])
    (model / INDEX).write_text(json.dumps({"weight_map": places}))
    assert "do not agree on the tensor norm" in refusal(model)
    (model / places["head"]).write_bytes(b"pickle")
    assert f"{places['head']} of the model is no safetensors file" in refusal(model)
    for file in model.glob("*.safetensors"):
        file.unlink()
    assert "no safetensors at its root" in refusal(model)
