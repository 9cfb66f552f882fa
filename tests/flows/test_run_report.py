"""`medius report` writes both forms of the report, and a finished run keeps the page beside its model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import run_report
from flows.addresses import browser_address
from flows.dag import build
from flows.profiles import load_profile
from flows.results import print_results, show_results_in_prefect
from flows.run_report import keep_page, report_line, show_page_in_prefect, write_reports
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import TransientStoreError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.manifest import Manifest, ObjectRecord, Provenance, digest_of
from tasks.artifacts.store import Store, open_store
from tasks.artifacts.verify import find_damage
from tasks.evaluate.results import build_results
from tasks.runtime.execute import RunContext, execute
from tests.flows.conftest import Medius
from tests.publish.conftest import measured, second_entry


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
    assert f"- stages finished: 1 of {len(build(load_profile('micro')))}" in text
    assert "100 % of what was offered became instructions" in text
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
    kept = keep_page(profile, steps, begun)
    assert kept.uri == f"file://{begun.uri}/{publish.directory}/report/micro.html"
    page = begun.get(f"{publish.directory}/report/micro.html").decode()
    assert "<h1>micro</h1>" in page
    assert kept.markdown.startswith("# Run of the profile micro")
    assert begun.get(f"{publish.directory}/report/micro.md").decode() == kept.markdown
    after = Artifact(begun, evolve.directory).manifest()
    assert before is not None
    assert after == before
    assert find_damage(Artifact(begun, evolve.directory), before) == []
    # An artifact exists when its manifest does: a page alone makes none.
    assert Artifact(begun, publish.directory).manifest() is None
    assert keep_page(profile, steps, begun).uri == kept.uri, "a second run replaces the page"


def test_a_run_shows_the_page_that_it_has_kept(begun: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile("micro", store=begun.uri)
    steps = build(profile)
    monkeypatch.chdir(tmp_path)
    kept = keep_page(profile, steps, begun)
    with monkeypatch.context() as nothing_read:
        nothing_read.setattr(run_report, "read_report", None)
        assert report_line(profile, steps, begun) == "build/reports/micro.html"
    assert Path("build/reports/micro.html").read_bytes() == begun.get(kept.path)
    assert Path("build/reports/micro.md").read_text() == kept.markdown
    begun.delete(kept.path)
    assert report_line(profile, steps, begun) == "build/reports/micro.html", "where none was kept it is made"
    assert "<h1>micro</h1>" in Path("build/reports/micro.html").read_text()


def test_a_browser_is_led_to_the_store_that_has_an_address(begun: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDIUS_STORE", f"{begun.uri}/")
    monkeypatch.delenv("MEDIUS_STORE_URL", raising=False)
    assert browser_address(begun, "a/report.html") is None
    monkeypatch.setenv("MEDIUS_STORE_URL", "http://127.0.0.1:8336/buckets/medius/store/")
    assert browser_address(begun, "a/report.html") == "http://127.0.0.1:8336/buckets/medius/store/a/report.html"
    monkeypatch.setenv("MEDIUS_STORE", "s3://medius/store")
    assert browser_address(begun, "a/report.html") is None, "that is another store's address"


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


def finish_evaluation(store: Store) -> None:
    """Commits an evaluation of two models where micro looks for its own."""
    step = next(step for step in build(load_profile("micro")) if step.label == "evaluate")
    recipe: Any = step.config.recipe
    recipe = recipe.model_copy(update={"parents": ()})
    results = build_results({"base": measured(0, 0.2), "final": measured(1, 0.8)}, recipe)
    data, path = json.dumps(results).encode(), "data/main/results.json"
    artifact = Artifact(store, step.directory)
    store.create(artifact.path(path), data)
    objects = (ObjectRecord(name="results.json", path=path, size=len(data), sha256=sha256_hex(data)),)
    unknown: dict[str, Any] = {"flow_run": None, "git_sha": None, "git_dirty": None}
    provenance = Provenance(
        write_id="one", created="", seconds=0, attempts=1, hardware={}, versions={}, runtime={}, **unknown
    )
    nothing: dict[str, Any] = {"recipe": {}, "inputs": {}, "metrics": {}}
    about: dict[str, Any] = {"stage": "evaluate", "version": 1, "label": step.label, "key": step.key}
    artifact.commit(Manifest(digest=digest_of(objects), objects=objects, provenance=provenance, **about, **nothing))


@pytest.mark.parametrize("fault", [TransientStoreError("the store answered 503"), KeyError("a bug")])
def test_a_finished_run_shows_its_results_whatever_becomes_of_the_report(
    medius: Medius, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    store = open_store(str(tmp_path / "store"))
    finish_evaluation(store)
    # Not the flow, which would take a minute: what the command does when the flow has returned.
    monkeypatch.setattr("flows.cli.start_prefect", lambda: lambda: None)
    monkeypatch.setattr("flows.pipeline.distillation", lambda *_: {})
    assert medius("run", "micro", "--store", store.uri).out.splitlines()[-1] == "report: build/reports/micro.html"

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr("flows.run_report.stage_records", fail)
    said = medius("run", "micro", "--store", store.uri)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert any(line.startswith("│ final") for line in lines)
    assert lines[-2].startswith("model: ")
    assert lines[-1].startswith("report: not written: ")
    assert str(fault.args[0]) in lines[-1]
    assert "medius report micro" in lines[-1]


def test_a_run_prints_its_benchmarks_beside_the_published_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "store"))
    finish_evaluation(store)
    evaluation = next(step for step in build(load_profile("micro")) if step.label == "evaluate")
    results = second_entry(json.loads(store.get(f"{evaluation.directory}/data/main/results.json")))
    pair = results["paired"]["final"]["base"]["entries"]
    monkeypatch.setattr("flows.results.read_results", lambda *_: results)
    expected = {"exercise_add": 0.7, "leaderboard_gpqa": 0.36}
    profile = load_profile("micro").model_copy(update={"expected": expected})
    said = io.StringIO()
    print_results(build(profile), store, Console(file=said, width=150))
    lines = said.getvalue().splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert ["published", "0.700", "0.360", "0.530"] in cells
    own = results["models"]["final"]["entries"]["exercise_add"]
    (final,) = [row for row in cells if row[0] == "final" and len(row) == 4 and row[2] == "0.250 ± 0.030"]
    assert final[1] == f"{own['value']:.3f} ± {own['stderr']:.3f}"
    assert "final minus each other model, paired:" in lines
    add = pair["exercise_add"]
    difference = f"{add['difference']:+.3f} ± {add['stderr']:.3f} (z {add['z']:+.1f})"
    assert [row[:3] for row in cells if row[0] == "base"][-1] == ["base", difference, "+0.000 ± 0.010 (z +0.0)"]
    assert lines[-1].startswith("model: ")


def test_the_flow_does_not_fail_by_its_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tmp_path / "store"))
    finish_evaluation(store)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the server is away")

    monkeypatch.setattr("flows.results.create_table_artifact", refuse)
    show_results_in_prefect(build(load_profile("micro")), store)
    assert "the server is away" in caplog.text


def test_an_empty_store_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = load_profile("micro", store=str(tmp_path / "store"))
    _, page = write_reports(profile, build(profile), open_store(profile.store))
    assert f"0 of {len(build(profile))}" in page.read_text(encoding="utf-8")
    assert not (tmp_path / "store").exists(), "a report writes nothing into the store"
