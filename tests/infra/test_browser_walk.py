"""A user's way through the dashboard: deploy, run from the form, watch, fail, retry, done, report; all of it real.

MEDIUS_WALK_PICTURES=1 writes the pictures of infra/README.md anew.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from flows.dag import build
from flows.profiles import load_profile
from flows.stack import CHECKOUT
from flows.stack_processes import marked, wait_until
from flows.stack_services import STORE
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import open_store
from tests.committed import resumed_after
from tests.flows.test_stack import Running
from tests.publish.page.test_in_a_browser import chromium

PICTURES = CHECKOUT / "infra" / "pictures"
SETTING = "branches.llama.distill.runtime.retries=0"
"""Without it Prefect tries a stage whose process was killed again by itself."""
STEPS = 160
LONGER = f"branches.llama.distill.recipe.steps={STEPS}"
"""Else a fast machine is through with the stage before its progress is on the dashboard."""
STAGE = "distill-llama"
_WIDTH, _HEIGHT = 1280, 900
_PAGE_SECONDS = 120
_RUN_SECONDS = 3600
"""Micro takes about two minutes on two idle cores; on one that seven others share it took half an hour."""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    stack = Running(tmp_path)
    yield stack
    stack.medius("down")


class Dashboard:
    """Prefect's user interface in a browser, and pictures of it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        page.set_default_timeout(1000 * _PAGE_SECONDS)
        expect.set_options(timeout=1000 * _PAGE_SECONDS)

    def open(self, path: str) -> None:
        # Its pages keep connections open: they load, but never become idle.
        self.page.goto(f"{self.url}{path}", wait_until="domcontentloaded")

    def tab(self, name: str) -> None:
        self.page.locator("li.p-tab", has_text=name).click()

    def state(self, name: str, seconds: float = _PAGE_SECONDS) -> None:
        """Waits for the state beside the run's name."""
        expect(self.page.locator(".state-badge", has_text=name).first).to_be_visible(timeout=1000 * seconds)

    def card(self, title: str) -> Locator:
        """An artifact among those of a run."""
        exactly = self.page.locator(".artifact-card__title", has_text=re.compile(f"^{re.escape(title)}$"))
        return self.page.locator(".artifact-card", has=exactly).first

    def picture(self, name: str) -> None:
        if os.environ.get("MEDIUS_WALK_PICTURES") == "1":
            PICTURES.mkdir(exist_ok=True)
            self.page.screenshot(path=PICTURES / f"{name}.png", animations="disabled")


def start_from_the_form(dashboard: Dashboard) -> str:
    """Fills the form of the deployment micro, first with what it refuses; the id of the run."""
    page = dashboard.page
    dashboard.open("/deployments")
    page.get_by_role("link", name="micro", exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_role("button", name="Add item").click()
    items = page.locator(".schema-form-property-array-item textarea")
    overrides = items.first
    overrides.fill(SETTING.partition("=")[0])
    for title in ("A file of configs/", "s3://bucket/prefix or a directory", "The whole recipe"):
        expect(page.get_by_role("button", name=title)).to_be_visible()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("does not match").first).to_be_visible()
    overrides.scroll_into_view_if_needed()
    dashboard.picture("1-form")
    assert page.url.partition("?")[0].endswith("/run"), "a form that is refused stays"
    overrides.fill(SETTING)
    page.get_by_role("button", name="Add item").click()
    expect(items).to_have_count(2)
    items.last.fill(LONGER)
    expect(overrides).to_have_value(SETTING)
    expect(items.last).to_have_value(LONGER)
    # What is typed reaches the form a moment later; a click before that sends what was refused.
    expect(page.get_by_text("does not match")).to_have_count(0)
    page.get_by_role("button", name="Submit").click()
    # The form leads back to its deployment, whose newest run is the one.
    page.wait_for_url(re.compile(r"/deployments/deployment/[^/]+$"))
    page.locator("a[href*='/runs/flow-run/']").first.click()
    page.wait_for_url(re.compile("/runs/flow-run/"))
    return page.url.partition("?")[0].rpartition("/")[2]


def worker_of(token: str, label: str) -> int | None:
    """The process that does a stage's work."""
    for pid in marked(token):
        # Others come and go meanwhile.
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"tasks.distill.worker" in command and b"keeper" not in command and f"-{label}-".encode() in command:
                return pid
    return None


def stop_in_the_midst(running: Running, run: str) -> int:
    """Halts the stage's process as soon as it has told of progress, so that it is still there when it is looked at."""
    found: list[int] = []

    def told() -> bool:
        cards = running.api("/artifacts/filter", {"artifacts": {"key": {"any_": [STAGE]}}})
        worker = worker_of(running.state()["token"], STAGE)
        if worker is not None and any("tokens/s" in str(card["description"]) for card in cards):
            os.kill(worker, signal.SIGSTOP)
            found.append(worker)
        return bool(found) or state_of(running, run)["type"] in {"COMPLETED", "FAILED", "CRASHED"}

    assert wait_until(told, _RUN_SECONDS)
    assert found, state_of(running, run)
    return found[0]


def state_of(running: Running, run: str) -> dict[str, Any]:
    [found] = running.api("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    state: dict[str, Any] = found["state"]
    return state


def stages_of(running: Running, run: str) -> dict[str, str]:
    """States of a run's last attempt at each stage."""
    found = running.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"})
    return {str(task["name"]): str(task["state"]["name"]) for task in found}


def types_of(running: Running, run: str) -> set[str]:
    """Types of the states of all of a run's task runs."""
    found = running.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {str(task["state_type"]) for task in found}


def watch_and_fail(dashboard: Dashboard, running: Running, run: str) -> None:
    page = dashboard.page
    worker = stop_in_the_midst(running, run)
    dashboard.open(f"/runs/flow-run/{run}")
    dashboard.state("Running")
    dashboard.tab("Artifacts")
    told = dashboard.card(STAGE)
    expect(told).to_contain_text(re.compile(rf"[\d,]+ of {STEPS} steps, [\d,]+ tokens/s, .* left"))
    told.scroll_into_view_if_needed()
    dashboard.picture("2-progress")
    os.kill(worker, signal.SIGKILL)

    dashboard.state("Failed", _RUN_SECONDS)
    dashboard.tab("Details")
    page.get_by_text("See More").first.click()
    message = page.get_by_text(f"{STAGE}: its process was killed (exit -9)").first
    expect(message).to_be_visible()
    expect(message).to_contain_text("A retry goes on from the last checkpoint or shard")
    message.scroll_into_view_if_needed()
    dashboard.picture("3-failure")


def retry(dashboard: Dashboard, running: Running, run: str, training: Artifact) -> None:
    page = dashboard.page
    before = stages_of(running, run)
    page.get_by_role("button", name="Retry", exact=True).click()
    page.locator(".p-modal").get_by_role("button", name="Retry").click()
    dashboard.state("Completed", _RUN_SECONDS)
    dashboard.tab("Task Runs")
    reused = page.locator(".state-badge", has_text="Reused")
    expect(reused.first).to_be_visible()
    dashboard.picture("4-done")
    reused.nth(3).scroll_into_view_if_needed()
    dashboard.picture("5-reused")
    after = stages_of(running, run)
    assert set(after) == {step.label for step in build(load_profile("micro"))}
    assert set(after.values()) == {"Completed", "Reused"}
    assert "PENDING" not in types_of(running, run), "stages behind the failed one are still about to begin"
    assert max(resumed_after(training), default=0) > 0, "it did not go on from its checkpoint"
    assert all(after[label] == "Reused" for label, state in before.items() if state == "Completed"), "nothing is twice"


def read_the_report(dashboard: Dashboard, run: str) -> None:
    page = dashboard.page
    dashboard.open(f"/runs/flow-run/{run}")
    dashboard.tab("Artifacts")
    dashboard.card("results").click()
    expect(page.get_by_role("cell").filter(has_text=re.compile(r"^\s*final\s*$")).first).to_be_visible()
    dashboard.picture("6-results")
    dashboard.open(f"/runs/flow-run/{run}")
    dashboard.tab("Artifacts")
    dashboard.card("report").click()
    link = page.get_by_role("link", name="Report of micro")
    target = link.get_attribute("href")
    assert target is not None
    assert target.startswith("http://127.0.0.1:")
    link.evaluate("link => link.removeAttribute('target')")
    link.click()
    expect(page.get_by_role("heading", name="micro", exact=True).first).to_be_visible()
    expect(page.get_by_role("heading", name="Results").first).to_be_visible()
    dashboard.picture("7-report")


@pytest.mark.slow
@pytest.mark.timeout(4 * _RUN_SECONDS)
def test_a_user_walks_from_the_form_through_a_failure_to_the_report(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser_path = chromium()
    said = running.up()
    assert said.returncode == 0, said.stderr
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    [step] = [each for each in build(load_profile("micro", [SETTING, LONGER])) if each.label == STAGE]
    training = Artifact(open_store(STORE), step.directory)
    url = f"http://127.0.0.1:{running.prefect}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        dashboard = Dashboard(browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}), url)
        run = start_from_the_form(dashboard)
        watch_and_fail(dashboard, running, run)
        retry(dashboard, running, run, training)
        read_the_report(dashboard, run)
        browser.close()
