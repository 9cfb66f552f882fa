"""`medius report` writes both forms of the report, and a finished run keeps the page beside its model."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.pipeline import build
from flows.profiles import load_profile
from flows.run_report import keep_page, report_line, show_page_in_prefect, write_reports
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import TransientStoreError
from tasks.artifacts.store import Store, open_store
from tasks.artifacts.verify import find_damage
from tasks.runtime.execute import RunContext, execute
from tests.flows.conftest import Medius


@pytest.fixture
def begun(tmp_path: Path) -> Store:
    """A store in which one step of micro is finished."""
    store = open_store(str(tmp_path / "store"))
    evolve = next(step for step in build(load_profile("micro")) if step.label == "evolve")
    execute(evolve, RunContext(store=store, scratch=tmp_path / "scratch"))
    return store


def test_report_writes_markdown_and_a_page_whose_path_is_the_last_word(
    medius: Medius, begun: Store, tmp_path: Path
) -> None:
    said = medius("report", "micro", "--store", begun.uri)
    assert said.code == 0
    assert said.out.splitlines() == ["build/reports/micro.md", "build/reports/micro.html"]
    text, page = (Path(line).read_text(encoding="utf-8") for line in said.out.splitlines())
    assert "| evolve | evolve | finished |" in text
    assert page.startswith("<!doctype html>")
    assert f"1 of {len(build(load_profile('micro')))}" in page
    assert "100 % of what was offered became instructions" in page

    elsewhere = tmp_path / "pages" / "mine.html"
    said = medius("report", "micro", "--store", begun.uri, "--html", str(elsewhere))
    assert said.out.splitlines()[-1] == str(elsewhere)
    assert elsewhere.read_text(encoding="utf-8") == page


def test_a_place_that_cannot_be_written_is_one_sentence(medius: Medius, begun: Store, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    said = medius("report", "micro", "--store", begun.uri, "--html", str(tmp_path / "taken" / "page.html"))
    assert said.code == 2
    assert "cannot be written" in said.err
    assert "--html" in said.err
    assert len(said.err.splitlines()) == 1


def test_the_page_lies_beside_the_published_model_and_changes_no_digest(begun: Store) -> None:
    profile = load_profile("micro", store=begun.uri)
    steps = build(profile)
    evolve, publish = next(step for step in steps if step.label == "evolve"), steps[-1]
    before = Artifact(begun, evolve.directory).manifest()
    uri = keep_page(profile, steps, begun)
    assert uri == f"file://{begun.uri}/{publish.directory}/report/micro.html"
    page = begun.get(f"{publish.directory}/report/micro.html").decode()
    assert "<h1>micro</h1>" in page
    after = Artifact(begun, evolve.directory).manifest()
    assert before is not None
    assert after == before
    assert find_damage(Artifact(begun, evolve.directory), before) == []
    # An artifact exists when its manifest does: a page alone makes none.
    assert Artifact(begun, publish.directory).manifest() is None
    assert keep_page(profile, steps, begun) == uri, "a second run replaces the page"


def test_a_report_that_finds_no_room_fails_no_run(
    begun: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    profile = load_profile("micro", store=begun.uri)
    steps = build(profile)
    monkeypatch.chdir(tmp_path)
    Path("build").write_text("a file where the folder should be")
    assert report_line(profile, steps, begun).startswith("not written: ")

    def refuse(*_: object) -> None:
        raise TransientStoreError("the store is away")

    monkeypatch.setattr(begun, "put", refuse)
    show_page_in_prefect(profile, steps, begun)
    assert "the store is away" in caplog.text


def test_an_empty_store_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = load_profile("micro", store=str(tmp_path / "store"))
    _, page = write_reports(profile, build(profile), open_store(profile.store))
    assert f"0 of {len(build(profile))}" in page.read_text(encoding="utf-8")
    assert not (tmp_path / "store").exists(), "a report writes nothing into the store"
