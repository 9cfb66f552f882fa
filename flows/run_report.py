"""The report of a run: Markdown and one HTML page on this machine, and the page beside the published model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from flows.profiles import Profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import Store
from tasks.publish.page.material import stage_records
from tasks.publish.page.page import render_page
from tasks.publish.report import write_report
from tasks.runtime.declare import Step
from tasks.runtime.state import step_state

FOLDER = Path("build/reports")


def write_reports(profile: Profile, steps: Sequence[Step], store: Store, page: Path | None = None) -> tuple[Path, Path]:
    """Writes the report of these steps, whatever state they are in; returns the paths of Markdown and HTML.

    `page` is where the HTML goes, by default build/reports/NAME.html; the Markdown is always in that folder.

    Raises:
        BadInputError: one of them cannot be written.
    """
    text, page = FOLDER / f"{profile.name}.md", page or FOLDER / f"{profile.name}.html"
    states = [step_state(step, store) for step in steps]
    rows = [(state.step.label, state.step.stage.name, state.step.directory, state.state) for state in states]
    html = render_page(stage_records(states, store), store, profile.name, profile.expected or None)
    try:
        write_report(store, rows, text, profile.name, profile.expected or None)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(html, encoding="utf-8")
    except OSError as error:
        raise BadInputError(
            f"{error.filename} cannot be written ({error.strerror}); name another file with --html, or make room there"
        ) from error
    return text, page


def report_line(profile: Profile, steps: Sequence[Step], store: Store) -> str:
    """Where the page is, or why it is not: hours of work do not fail by a report that finds no room."""
    try:
        return str(write_reports(profile, steps, store)[1])
    except BadInputError as error:
        return f"not written: {error}"


def keep_page(profile: Profile, steps: Sequence[Step], store: Store) -> str:
    """Puts the page beside the published model's files, and returns its URI.

    Times and sizes are in it, so it is no object of the artifact and no part of its digest, as verdicts are not.
    """
    published = next(step for step in steps if step.stage.name == "publish")
    page = render_page(
        stage_records([step_state(step, store) for step in steps], store), store, profile.name, profile.expected or None
    )
    path = Artifact(store, published.directory).path(f"report/{profile.name}.html")
    # A run that had nothing to do writes nothing.
    if not store.exists(path) or store.get(path) != page.encode():
        store.put(path, page.encode())
    file = store.local_path(path)
    return file.resolve().as_uri() if file is not None else store.locate(path)


def show_page_in_prefect(profile: Profile, steps: Sequence[Step], store: Store) -> None:
    """Keeps the page with the published model and links it from the flow run; a finished run never fails by it."""
    from prefect.artifacts import create_link_artifact

    try:
        uri = keep_page(profile, steps, store)
        create_link_artifact(
            uri,
            link_text=f"Report of {profile.name}",
            key="report",
            description=f"One HTML page, kept beside the published model: {uri}",
        )
    except Exception as error:
        logging.getLogger(__name__).warning("the report could not be kept: %s", error)
