"""The report of a run as Markdown and as one HTML page: on this machine, and beside the published model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.addresses import browser_address
from flows.profiles import Profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, MediusError
from tasks.artifacts.redact import redact
from tasks.artifacts.store import Store
from tasks.publish.page.contents import Report, read_report
from tasks.publish.page.markdown import render_markdown
from tasks.publish.page.material import stage_records
from tasks.publish.page.page import render_page
from tasks.runtime.declare import Step
from tasks.runtime.state import step_states

FOLDER = Path("build/reports")


@dataclass(frozen=True)
class KeptReport:
    """A report beside the published model."""

    path: str
    """Of the page, below the store's root."""
    uri: str
    """Of the page: of a file, where the store is a folder of this machine."""
    markdown: str


def write_reports(profile: Profile, steps: Sequence[Step], store: Store, page: Path | None = None) -> tuple[Path, Path]:
    """Writes the report of these steps, whatever state they are in; returns the paths of Markdown and HTML.

    `page` is where the HTML goes, by default build/reports/NAME.html; the Markdown is always in that folder.

    Raises:
        BadInputError: one of them cannot be written.
    """
    text, page = FOLDER / f"{profile.name}.md", page or FOLDER / f"{profile.name}.html"
    report = _report(profile, steps, store)
    try:
        for target, content in ((text, render_markdown(report)), (page, render_page(report))):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(redact(content), encoding="utf-8")
    except OSError as error:
        raise BadInputError(
            f"{error.filename} cannot be written ({error.strerror}); name another file with --html, or make room there"
        ) from error
    return text, page


def report_line(profile: Profile, steps: Sequence[Step], store: Store) -> str:
    """Where the page is, or why it is not: a finished run never fails by its report.

    It is the one that the run has kept with its model, made anew where there is none.
    """
    try:
        kept = _kept_paths(profile, steps, store)
        if not all(store.exists(path) for path in kept):
            return str(write_reports(profile, steps, store)[1])
        text, page = (FOLDER / Path(path).name for path in kept)
        FOLDER.mkdir(parents=True, exist_ok=True)
        for path, target in zip(kept, (text, page), strict=True):
            target.write_bytes(store.get(path))
        return str(page)
    except Exception as error:
        reason = " ".join(str(error).split()) if isinstance(error, MediusError) else repr(error)
        return f"not written: {reason} (the run is finished; medius report {profile.name} writes it)"


def _kept_paths(profile: Profile, steps: Sequence[Step], store: Store) -> tuple[str, str]:
    """Markdown and HTML beside the published model's files."""
    published = Artifact(store, next(step for step in steps if step.stage.name == "publish").directory)
    return published.path(f"report/{profile.name}.md"), published.path(f"report/{profile.name}.html")


def keep_page(profile: Profile, steps: Sequence[Step], store: Store) -> KeptReport:
    """Puts the report in both forms beside the published model's files.

    Times and sizes are in it, so it is no object of the artifact and no part of its digest, as verdicts are not.
    """
    text, path = _kept_paths(profile, steps, store)
    report = _report(profile, steps, store)
    markdown = redact(render_markdown(report))
    _keep(store, text, markdown)
    _keep(store, path, redact(render_page(report)))
    file = store.local_path(path)
    return KeptReport(path, file.resolve().as_uri() if file is not None else store.locate(path), markdown)


def _report(profile: Profile, steps: Sequence[Step], store: Store) -> Report:
    records = stage_records(step_states(steps, store), store)
    return read_report(records, store, profile.name, profile.expected or None)


def _keep(store: Store, path: str, text: str) -> None:
    # A run that had nothing to do writes nothing.
    data = text.encode()
    if not store.exists(path) or store.get(path) != data:
        store.put(path, data)


def show_page_in_prefect(profile: Profile, steps: Sequence[Step], store: Store) -> None:
    """Keeps the page with the published model and links it from the flow run; a finished run never fails by it.

    A browser opens neither s3:// nor, from a dashboard, a file: there the run shows the Markdown itself.
    """
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    try:
        kept = keep_page(profile, steps, store)
        description = f"Report of {profile.name} as one HTML page, kept beside the published model: {kept.uri}"
        if (address := browser_address(store, kept.path)) is not None:
            create_link_artifact(address, link_text=f"Report of {profile.name}", key="report", description=description)
        else:
            create_markdown_artifact(kept.markdown, key="report", description=description)
    except Exception as error:
        logging.getLogger(__name__).warning("the report could not be kept: %s", error)
