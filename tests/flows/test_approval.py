"""Which stages need an approval, and the answers that a terminal gives; no server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.approval import Approvals
from flows.approval_pause import approval_of_deployment
from flows.approval_rule import ApprovalRule
from flows.costs import CostOptions, cost_of
from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.errors import BadInputError, InterruptedRunError
from tasks.artifacts.store import Store
from tasks.runtime.execute import RunContext, execute
from tests.flows.conftest import Medius

ANY = 1e-12
"""USD that every stage with a device is over."""


def approvals_of(store: Store, profile: str = "micro", until: str | None = None, **rule: object) -> Approvals:
    loaded = load_profile(profile)
    return Approvals(ApprovalRule.model_validate(rule), build(loaded, until), store)


def labels(approvals: Approvals) -> list[str]:
    return [stage.step.label for stage in approvals.wanted()]


def test_what_is_over_a_threshold_is_what_the_forecast_says(store: Store) -> None:
    loaded = load_profile("medius")
    cost = cost_of(build(loaded), store, loaded.parallel_stages, CostOptions.read())
    hours = {step.label: step.left.device_hours for step in cost.steps}
    dumps = {label for label, value in hours.items() if value > 100}
    assert "logits-llama" in dumps
    assert "publish" not in dumps
    assert set(labels(approvals_of(store, "medius", above_gpu_hours=100))) == dumps
    [price] = {step.left.hardware.name for step in cost.steps if step.left.hardware and step.left.uses_accelerators}
    double = approvals_of(store, "medius", above_usd=1, prices={price: 2 * 2.5}).wanted()
    single = {stage.step.label: stage for stage in approvals_of(store, "medius", above_usd=1).wanted()}
    assert double[-1].usd > 1.5 * single[double[-1].step.label].usd
    [dump] = [stage for stage in double if stage.step.label == "logits-llama"]
    assert f"{dump.gpu_hours:,.1f} GPU-hours" in dump.said
    assert labels(approvals_of(store, "medius", above_usd=1e9)) == []


def test_a_processor_has_a_price_and_no_gpu_hours(store: Store) -> None:
    assert labels(approvals_of(store, above_gpu_hours=0)) == []
    assert "distill-qwen" in labels(approvals_of(store, above_usd=ANY))


def test_an_approval_stands_until_the_forecast_has_grown(store: Store) -> None:
    approvals = approvals_of(store, until="logits-llama", above_usd=ANY)
    [dump] = approvals.wanted()
    approvals.give([dataclasses.replace(dump, usd=dump.usd / 2)], "a test")
    assert labels(approvals) == ["logits-llama"], "twice what was approved"
    approvals.give([dump], "a test")
    assert labels(approvals) == []
    assert labels(approvals_of(store, until="logits-llama", above_usd=ANY)) == [], "it stands in the store"


def test_a_finished_stage_is_never_asked_about(store: Store, tmp_path: Path) -> None:
    until = "logits-llama"
    approvals = approvals_of(store, until=until, above_usd=ANY)
    assert labels(approvals) == [until]
    for step in build(load_profile("micro"), until):
        execute(step, RunContext(store=store, scratch=tmp_path / "scratch"))
    assert labels(approvals) == []


def test_a_terminal_asks_once_before_the_run(store: Store) -> None:
    approvals = approvals_of(store, until="distill-qwen", above_usd=ANY)
    wanted = labels(approvals)
    assert {"logits-qwen", "distill-qwen"} <= set(wanted)
    shown: list[list[str]] = []

    def refuse(said: list[str]) -> bool:
        shown.append(said)
        return False

    with pytest.raises(InterruptedRunError, match="not approved, so nothing was started"):
        approvals.ask(refuse, approved=False)
    assert [said.split()[0] for said in shown[0]] == wanted
    with pytest.raises(InterruptedRunError, match=r"no terminal to ask in; run the same command with --yes") as raised:
        approvals.ask(None, approved=False)
    assert raised.value.exit_code == 4
    approvals.ask(lambda _said: True, approved=False)
    approvals.ask(None, approved=False)


def test_yes_answers_without_a_terminal(store: Store) -> None:
    approvals = approvals_of(store, until="distill-qwen", above_usd=ANY)
    approvals.ask(None, approved=True)
    assert labels(approvals) == []


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ({}, "give above_gpu_hours, above_usd or both"),
        ({"above_usd": 1, "prices": {"h1000": 3}}, "prices has h1000"),
        ({"above_usd": 1, "prices": {"h100-sxm": -3}}, "prices has h100-sxm"),
        ({"above_gpu_hours": 1, "wait_hours": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_a_rule_that_says_nothing_is_refused(rule: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        ApprovalRule.model_validate(rule)


def test_a_run_without_a_terminal_says_what_it_wants_before_a_server_boots(
    medius: Medius, micro: Callable[..., Path]
) -> None:
    profile = micro({"approval": {"above_usd": ANY}})
    said = medius("run", str(profile), "--until", "logits-llama")
    assert said.code == 4
    assert said.err.startswith("medius: logits-llama is forecast to take")
    assert "--yes" in said.err
    assert not Path(".medius/prefect/server.log").exists()


def test_a_word_for_one_stage_is_recorded_for_that_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run of single-stage is given with, by a form or by the run that dispatches it."""
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of a deployment")
    loaded = load_profile("micro", [f"approval={{above_usd: {ANY}}}"])
    steps = build(loaded, "distill-qwen")
    context = RunContext(store=store, scratch=tmp_path)
    wanted = labels(Approvals(ApprovalRule(above_usd=ANY), steps, store))
    assert {"logits-qwen", "distill-qwen"} <= set(wanted)
    [dump] = [step for step in steps if step.label == "logits-qwen"]
    assert approval_of_deployment(loaded, steps, context, only=dump) is not None, "without it somebody is asked"
    assert approval_of_deployment(loaded, steps, context, only=dump, approved=True) is None
    wanted.remove(dump.label)
    assert labels(Approvals(ApprovalRule(above_usd=ANY), steps, store)) == wanted


def test_an_approval_is_no_part_of_any_key(micro: Callable[..., Path]) -> None:
    def keys(profile: str) -> dict[str, str]:
        return {step.label: step.key for step in build(load_profile(profile))}

    assert keys(str(micro({"approval": {"above_gpu_hours": 10}}))) == keys("micro")
    with pytest.raises(BadInputError, match="approval: give above_gpu_hours"):
        load_profile(str(micro({"approval": {}})))


def test_approve_without_a_server_says_where_there_is_one(medius: Medius, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    said = medius("approve")
    assert said.code == 2
    assert "source .medius/up/environment" in said.err
