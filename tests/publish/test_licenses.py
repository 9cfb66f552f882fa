from typing import Any

import pytest
from pydantic import ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.publish.licenses import check_name, derive_terms
from tasks.publish.stage import PublishConfig, PublishRecipe, Source, Teacher

LLAMA = Teacher(name="Llama-3.1-405B-Instruct", license="llama3.1", family="llama")
QWEN = Teacher(name="Qwen2.5-72B-Instruct", license="qwen", family="qwen")
STUDENT = Source(name="Qwen2.5-14B-Instruct", license="apache-2.0")


def test_llama_and_qwen_together_carry_the_terms_of_both() -> None:
    terms = derive_terms([STUDENT, QWEN, LLAMA])
    assert (terms.license, terms.license_name, terms.name_prefix) == ("llama3.1", None, "Llama")
    assert any(notice.startswith("Built with Llama.") for notice in terms.notices)
    assert any(notice.startswith("Improved using Qwen.") for notice in terms.notices)
    assert len(terms.notices) == 2
    assert derive_terms([LLAMA, QWEN, STUDENT]) == terms
    with pytest.raises(BadInputError, match="call it Llama-SuperNova-Medius"):
        check_name("somebody/SuperNova-Medius", terms)
    check_name("somebody/Llama-3.1-SuperNova-Medius", terms)


def test_qwen_alone_is_named_since_the_hub_has_no_identifier_for_it() -> None:
    terms = derive_terms([STUDENT, QWEN])
    assert (terms.license, terms.license_name, terms.name_prefix) == ("other", "qwen", "")
    assert [notice.partition(".")[0] for notice in terms.notices] == ["Improved using Qwen"]


def test_permissive_parts_stay_permissive() -> None:
    terms = derive_terms([STUDENT, Source(name="stdlib", license="psf-2.0")])
    assert (terms.license, terms.notices) == ("apache-2.0", ())


def test_data_count_too_and_the_unknown_is_refused() -> None:
    assert derive_terms([STUDENT, Source(name="outputs", license="llama3.3")]).license == "llama3.3"
    with pytest.raises(BadInputError, match=r"EvolKit has the licence 'bespoke', whose terms are not known"):
        derive_terms([STUDENT, Source(name="EvolKit", license="bespoke")])


def test_the_recipe_checks_before_anything_runs() -> None:
    recipe: dict[str, Any] = {
        "repo_name": "Medius-tiny",
        "title": "Medius tiny",
        "base_model": ["Qwen/Qwen2.5-14B-Instruct"],
        "teachers": [LLAMA.model_dump()],
        "student": STUDENT.model_dump(),
        "generated_data": True,
        "merge_method": "TIES",
    }
    with pytest.raises(ValidationError, match='must have a name that starts with "Llama"'):
        PublishRecipe.model_validate(recipe)
    with pytest.raises(ValidationError, match="carry a Llama licence"):
        Teacher(name="Llama-3.1-8B", license="apache-2.0", family="llama")
    named = {**recipe, "repo_name": "Llama-Medius-tiny"}
    assert PublishRecipe.model_validate(named).target == "store"
    with pytest.raises(ValidationError, match="needs an owner"):
        PublishRecipe.model_validate({**named, "target": "hub"})
    with pytest.raises(ValidationError, match=r"set publish\.runtime\.directory"):
        PublishConfig.model_validate({"recipe": {**named, "target": "directory"}})
