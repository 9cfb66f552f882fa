"""Models of different vocabularies, architectures or configs are never merged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.fuse.alike import check_alike
from tasks.modeling.tokenizer_files import load_tokenizer
from tests.fuse.test_fuse import LINEAR, MakeModel, RunStage


def said_nothing(sentence: str) -> None:
    raise AssertionError(sentence)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"digits": 3}, "base and two have different tokenizers"),
        ({"rows": 320}, "base has 288 embedding rows and two 320"),
        ({"tied": False}, "lm_head"),
        # As many values in each tensor, cut into heads in another way.
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, "num_attention_heads is 2 in base and 4 in two"),
        ({"hidden_act": "gelu"}, "hidden_act is silu in base and gelu in two"),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, r"rope_parameters is .*10000.* in base and"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding_window is None in base"),
        ({"intermediate_size": 48}, r"mlp.* has the shape \[.*32.*\] in base and \[.*48.*\] in two"),
    ],
)
def test_models_that_do_not_match_are_refused(make_model: MakeModel, other: dict[str, Any], message: str) -> None:
    model, odd = make_model("model", 0), make_model("odd", 1, **other)
    with pytest.raises(BadInputError, match=message):
        check_alike({"base": model, "one": model, "two": odd}, "base", said_nothing)


def test_configs_that_mean_the_same_are_alike(make_model: MakeModel) -> None:
    """As written by another version of transformers, and with the epsilons of Qwen2.5-14B and its Instruct model."""
    base, older = make_model("base", 0, rms_norm_eps=1e-5), make_model("older", 1, rms_norm_eps=1e-6)
    config = json.loads((older / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    (older / "config.json").write_text(json.dumps({**config, "rope_theta": theta, "rope_scaling": None}))
    said: list[str] = []
    check_alike({"older": older, "base": base}, "base", said.append)
    assert said == ["rms_norm_eps is 1e-05 in base and 1e-06 in older"]


def test_who_chats_ends_as_all_branches_do(make_model: MakeModel) -> None:
    """As Qwen2.5-14B and branches of its Instruct model, whose generation_config has the base's end too."""
    base = make_model("base", 0, eos="<|endoftext|>")
    branches = {name: make_model(name, seed) for seed, name in enumerate(("one", "two"), 1)}
    for branch in branches.values():
        config = json.loads((branch / "generation_config.json").read_text())
        end = load_tokenizer(base).eos_token_id
        (branch / "generation_config.json").write_text(
            json.dumps({**config, "eos_token_id": [config["eos_token_id"], end]})
        )
    given = {"base": base, **branches}
    check_alike(given, "one", said_nothing)
    said = (
        r"all branches end an answer with <\|im_end\|>, and base, whose .*, with <\|endoftext\|>, .* one of one, two$"
    )
    with pytest.raises(BadInputError, match=said):
        check_alike(given, "base", said_nothing)
    # Branches that share no more than the base has are none of a chat model's.
    other = make_model("other", 3, eos="<|endoftext|>")
    check_alike({**given, "two": other}, "base", said_nothing)


def test_a_merge_of_models_that_do_not_match_is_refused(run_stage: RunStage, make_model: MakeModel) -> None:
    model, odd = make_model("model", 0), make_model("odd", 1, digits=3)
    with pytest.raises(BadInputError, match="base and two have different tokenizers"):
        run_stage("fuse", LINEAR, {"base": model, "branch.one": model, "branch.two": odd})
