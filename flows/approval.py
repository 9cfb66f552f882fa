"""Approval of what is expensive: which stages need it, and the record that one has it.

<artifact>/approval.json    what was approved, by whom and when. It stands with the stage's key, so that a retry, a new
                            run and another pool's run of the same stage ask nobody again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flows.approval_rule import ApprovalRule
from flows.costs import DONE, CostOptions, StepCost, step_costs
from tasks.artifacts.artifact import Artifact, decode_record, encode_record
from tasks.artifacts.errors import InterruptedRunError, ObjectMissingError
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.store import Store
from tasks.artifacts.timestamp import timestamp
from tasks.planning.assumptions import assumptions
from tasks.planning.quantities import money, span
from tasks.runtime.declare import Step

RECORD = "approval.json"
_GROWN = 1.1
"""An approval holds for up to so many times what was approved: forecasts move as sizes come to be known."""


class Approval(Frozen):
    """What somebody has agreed to."""

    gpu_hours: float
    usd: float
    by: str
    time: str


@dataclass(frozen=True)
class Expensive:
    """A stage over a threshold that nobody has approved yet."""

    step: Step
    gpu_hours: float
    usd: float
    seconds: float

    @property
    def said(self) -> str:
        """Stage and forecast in words."""
        return (
            f"{self.step.label} is forecast to take {span(self.seconds)}, {self.gpu_hours:,.1f} GPU-hours, "
            f"{money(self.usd)} USD"
        )


class Approvals:
    """The stages of one run, and which of them still need somebody's word."""

    def __init__(self, rule: ApprovalRule, steps: Sequence[Step], store: Store) -> None:
        self.rule = rule
        self._steps = steps
        self._store = store

    def wanted(self) -> list[Expensive]:
        """The stages that would be asked about now, in the order of the recipe; finished ones never are.

        Raises:
            BadInputError: the shape of a model is not known, so that nothing can be forecast.
        """
        return self._among(self._steps)

    def of(self, step: Step) -> Expensive | None:
        """The same of one stage."""
        return next(iter(self._among([step])), None)

    def _among(self, chosen: Sequence[Step]) -> list[Expensive]:
        options = CostOptions(assumptions(()), prices=self.rule.prices)
        costs = step_costs(chosen, self._steps, self._store, options)
        return [stage for cost in costs if (stage := self._expensive(cost)) is not None]

    def _expensive(self, cost: StepCost) -> Expensive | None:
        step, rule = cost.state.step, self.rule
        if cost.state.state in DONE:
            return None
        hours, usd = cost.left.device_hours, cost.left.usd(rule.prices)
        over_hours = rule.above_gpu_hours is not None and hours > rule.above_gpu_hours
        over_usd = rule.above_usd is not None and usd > rule.above_usd
        if not (over_hours or over_usd):
            return None
        given = self._given(step)
        if given is not None and hours <= _GROWN * given.gpu_hours and usd <= _GROWN * given.usd:
            return None
        return Expensive(step, hours, usd, cost.left.duration)

    def _given(self, step: Step) -> Approval | None:
        artifact = Artifact(self._store, step.directory)
        try:
            return decode_record(Approval, self._store.get(artifact.path(RECORD)), f"{artifact.uri}/{RECORD}")
        except ObjectMissingError:
            return None

    def give(self, stages: Sequence[Expensive], by: str) -> None:
        """Records that these may begin."""
        for stage in stages:
            record = Approval(gpu_hours=stage.gpu_hours, usd=stage.usd, by=by, time=timestamp())
            self._store.put(f"{stage.step.directory}/{RECORD}", encode_record(record))

    def ask(self, confirm: Callable[[list[str]], bool] | None, approved: bool) -> None:
        """Settles all stages before a run from the command line begins.

        Args:
            confirm: shows the sentences and returns the answer; None where there is nobody to ask.
            approved: whether the answer was given with the command.

        Raises:
            InterruptedRunError: the answer is no, or there is nobody to ask.
        """
        stages = self.wanted()
        if not stages:
            return
        said = [stage.said for stage in stages]
        if not approved and confirm is None:
            raise InterruptedRunError(
                f"{'; '.join(said)}: over the profile's `approval`, and there is no terminal to ask in; run the same "
                f"command with --yes, or in a terminal"
            )
        if not approved and confirm is not None and not confirm(said):
            raise InterruptedRunError("not approved, so nothing was started; the same command asks again")
        self.give(stages, "--yes" if approved else "an answer in the terminal")
