"""A model's licence follows from those of its sources: the strictest wins, and a conflict is refused."""

from __future__ import annotations

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.publish.sources import LicensedSource, Part
from tasks.publish.terms import check_names, derive_terms


def source(name: str, license: str, *parts: Part) -> LicensedSource:
    return LicensedSource(name, license, "data" if parts == ("data",) else "models", frozenset(parts or {"teacher"}))


LLAMA = source("Llama-3.1-405B-Instruct", "llama3.1")
QWEN = source("Qwen2.5-72B-Instruct", "qwen")
STUDENT = source("Qwen2.5-14B-Instruct", "apache-2.0", "student")


def test_llama_and_qwen_together_carry_the_terms_of_both() -> None:
    terms = derive_terms([STUDENT, QWEN, LLAMA])
    assert (terms.license, terms.license_name, terms.name_prefix) == ("llama3.1", None, "Llama")
    assert terms.displays == ("Built with Llama", "Improved using Qwen")
    llama, qwen = terms.notices
    assert llama.startswith("Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms")
    assert "Made with Llama-3.1-405B-Instruct" in llama
    assert "Qwen LICENSE AGREEMENT" in qwen
    assert derive_terms([LLAMA, QWEN, STUDENT]) == terms
    with pytest.raises(BadInputError, match=r'starts with "Llama"; call it Llama-SuperNova-Medius in .*repo_name'):
        check_names("somebody/SuperNova-Medius", "Llama SuperNova", terms)
    with pytest.raises(BadInputError, match=r"call it Llama SuperNova in publish\.recipe\.title"):
        check_names("somebody/Llama-3.1-SuperNova-Medius", "SuperNova", terms)
    check_names("somebody/Llama-3.1-SuperNova-Medius", "Llama-3.1-SuperNova-Medius", terms)


def test_one_notice_names_all_that_is_under_its_licence() -> None:
    (notice,) = derive_terms([STUDENT, LLAMA, source("Llama-3.1-8B", "llama3.1", "donor")]).notices
    assert "Made with Llama-3.1-405B-Instruct, Llama-3.1-8B" in notice


def test_qwen_alone_is_named_since_the_hub_has_no_identifier_for_it() -> None:
    terms = derive_terms([STUDENT, QWEN])
    assert (terms.license, terms.license_name, terms.name_prefix) == ("other", "qwen", "")
    assert terms.displays == ("Improved using Qwen",)


def test_permissive_parts_stay_permissive() -> None:
    terms = derive_terms([STUDENT, source("stdlib", "psf-2.0", "data"), source("mine", "own", "data")])
    assert (terms.license, terms.notices, terms.displays) == ("apache-2.0", (), ())


@pytest.mark.parametrize(
    ("weaker", "stricter"),
    [
        ("cc0-1.0", "cc-by-4.0"),
        ("odc-by", "apache-2.0"),
        ("apache-2.0", "cc-by-sa-4.0"),
        ("apache-2.0", "qwen"),
        ("qwen", "llama3.3"),
        ("llama3.1", "cc-by-nc-4.0"),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    ],
)
def test_the_stricter_one_wins(weaker: str, stricter: str) -> None:
    if (weaker, stricter) == ("cc-by-nc-4.0", "cc-by-nc-sa-4.0"):
        # A share-alike licence takes no other limits, not even its own without the share-alike.
        with pytest.raises(BadInputError, match="both cannot be kept"):
            derive_terms([STUDENT, source("one", weaker, "data"), source("other", stricter, "data")])
        return
    terms = derive_terms([source("one", weaker), source("other", stricter, "data")])
    assert stricter in {terms.license, terms.license_name}


def test_whom_data_must_credit_is_in_the_notices() -> None:
    terms = derive_terms([STUDENT, source("a/texts", "odc-by", "data"), source("b/chats", "cc-by-4.0", "data")])
    assert terms.license == "apache-2.0"
    assert any("a/texts" in notice and "ODC Attribution" in notice for notice in terms.notices)
    assert any("b/chats" in notice and "CC BY 4.0" in notice for notice in terms.notices)


@pytest.mark.parametrize("restricted", ["llama3.1", "qwen", "cc-by-nc-4.0"])
def test_share_alike_takes_no_licence_that_limits_use(restricted: str) -> None:
    shared = source("wiki", "cc-by-sa-4.0", "data")
    with pytest.raises(
        BadInputError, match=rf"wiki has the licence cc-by-sa-4\.0.*other has {restricted}.*without one"
    ):
        derive_terms([STUDENT, shared, source("other", restricted)])
    assert derive_terms([STUDENT, shared]).license == "cc-by-sa-4.0"


@pytest.mark.parametrize("closed", ["llama2", "llama3"])
def test_outputs_of_older_llamas_improve_only_their_own(closed: str) -> None:
    teacher = source("the older one", closed)
    with pytest.raises(BadInputError, match=rf"the older one has the licence {closed}.*Qwen2\.5-14B-Instruct is under"):
        derive_terms([STUDENT, teacher])
    own = source("an older student", closed, "student")
    assert derive_terms([own, teacher]).license == closed
    with pytest.raises(BadInputError, match=r"is under llama3\.1"):
        derive_terms([source("Llama-3.1-8B", "llama3.1", "student"), own, teacher])


def test_llama_3_has_rules_of_its_own_for_names() -> None:
    terms = derive_terms([source("student", "llama3", "student"), source("Llama-3.1-405B", "llama3.1")])
    assert terms.name_prefix == "Llama 3"
    assert "Built with Meta Llama 3" in terms.displays
    with pytest.raises(BadInputError, match="call it Llama-3-Llama-Medius"):
        check_names("Llama-Medius", "Llama 3 Medius", terms)
    check_names("me/Llama-3-Medius", "Llama 3 Medius", terms)


def test_what_is_unknown_or_forbids_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"EvolKit has the licence 'bespoke', whose terms are not known"):
        derive_terms([STUDENT, source("EvolKit", "bespoke", "data")])
    with pytest.raises(BadInputError, match="may be passed on"):
        derive_terms([STUDENT, source("texts", "cc-by-nd-4.0", "data")])
    with pytest.raises(BadInputError, match="made of nothing"):
        derive_terms([])
