"""Chromium opens the page, asks no network for anything, and has nothing to complain of.

Where there is no Chromium the test is left out, unless MEDIUS_REQUIRE_BROWSER=1 says that there must be one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.artifacts.store import Store
from tasks.publish.page.material import StageRecord
from tests.publish.conftest import Make
from tests.publish.page.conftest import RecordOf, choice_record, html

NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "MEDIUS_REQUIRE_BROWSER"
NOWHERE = "http://192.0.2.1/picture.png"
"""An address that belongs to no machine (RFC 5737)."""


@dataclass(frozen=True)
class Opened:
    """The document after loading, the URLs that Chromium's network stack was asked for, and the console's lines."""

    document: str
    urls: set[str]
    console: list[str]


def chromium() -> str:
    """The browser; without one the test is skipped, or fails where one is required."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is not None:
        return found
    reason = f"none of {', '.join(NAMES)} is installed (apt-get install chromium)"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED} is 1 and {reason}")
    pytest.skip(f"{reason}; {REQUIRED}=1 makes this a failure")


def open_in_chromium(page: Path, folder: Path) -> Opened:
    log = folder / f"{page.stem}-net.json"
    done = subprocess.run(
        [
            chromium(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={folder / page.stem}",
            f"--log-net-log={log}",
            "--enable-logging=stderr",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    net = json.loads(log.read_text())
    started = net["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    # The end of a request is an event of the same type, with an error in the place of the address.
    asked = [event["params"] for event in net["events"] if event["type"] == started and "params" in event]
    urls = {params["url"] for params in asked if "url" in params}
    console = [line for line in done.stderr.splitlines() if re.search(r"CONSOLE[:(]", line)]
    return Opened(done.stdout, urls, console)


def test_a_missing_browser_is_a_failure_only_where_one_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="MEDIUS_REQUIRE_BROWSER is 1 and none of chromium"):
        chromium()
    monkeypatch.delenv(REQUIRED)
    with pytest.raises(pytest.skip.Exception, match="none of chromium"):
        chromium()


@pytest.mark.browser
def test_chromium_opens_the_page_without_a_network_or_a_complaint(
    run: list[StageRecord], make: Make, record_of: RecordOf, store: Store, tmp_path: Path
) -> None:
    # What the browser does for itself, and proof that requests and complaints of a page are seen here.
    talkative = tmp_path / "talkative.html"
    talkative.write_text(f'<img src="{NOWHERE}"><script>console.error("seen")</script>')
    control = open_in_chromium(talkative, tmp_path)
    assert NOWHERE in control.urls
    assert any("seen" in line for line in control.console)

    page = tmp_path / "page.html"
    choice = record_of(make("choose", "choose", {"choice.json": json.dumps(choice_record()).encode()}))
    page.write_text(html([*run, choice], store, "tiny", {"exercise_add": 0.7}), encoding="utf-8")
    opened = open_in_chromium(page, tmp_path)
    of_the_browser = {url.split("?")[0] for url in control.urls - {NOWHERE}}
    asked = {url for url in opened.urls if not url.startswith(("file:", "data:"))}
    assert {url.split("?")[0] for url in asked} <= of_the_browser
    assert opened.console == []
    assert '<h2 id="results-evaluate-title">Results</h2>' in opened.document
    assert "tuned goes on: it is better" in opened.document
    assert opened.document.count("<svg") > 10
