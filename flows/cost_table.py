"""The forecast of a run as a table, and under it the sums, the critical path, warnings and what was assumed."""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from flows.costs import DONE, CostOptions, RunCost, StepCost, cost_of
from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.errors import StoreError
from tasks.artifacts.store import open_store
from tasks.planning.assumptions import Assumptions
from tasks.planning.hardware import Hardware
from tasks.planning.quantities import byte_size, money, span

COLUMNS = ("stage", "tokens", "FLOPs", "devices", "each holds", "time", "GPU h", "USD", "stored", "moved", "objects")


def show_cost(
    profile: str, overrides: Sequence[str], store: str | None, smoke: bool, options: CostOptions, console: Console
) -> None:
    """Loads a profile, forecasts it and prints that.

    Raises:
        BadInputError: the profile is wrong, or the shape of a model is not known.
    """
    loaded = load_profile(profile, overrides, store, smoke=smoke)
    steps, opened = build(loaded), open_store(loaded.store)
    said = ""
    try:
        cost = cost_of(steps, opened, loaded.parallel_stages, options)
    except StoreError as error:
        # A price is asked for before there are a bucket and keys to it.
        said = f"The store cannot be read, so every stage counts as not begun: {error}"
        with TemporaryDirectory() as empty:
            cost = cost_of(steps, open_store(empty), loaded.parallel_stages, options)
    print_cost(cost, f"{loaded.name} in {opened.uri}", console)
    if said:
        console.print(said, soft_wrap=True, markup=False)


def print_cost(cost: RunCost, title: str, console: Console) -> None:
    """Prints everything; the total is the last line of the table."""
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        left = column in {"stage", "devices"}
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for step in cost.steps:
        table.add_row(*_row(step, cost))
    table.add_section()
    table.add_row(
        "left to do", "", _amount(sum(step.left.flops for step in cost.steps)), "", "", span(cost.schedule.length),
        _gpu_hours(cost.device_hours), money(cost.usd), byte_size(sum(step.left.stored for step in cost.steps)),
        byte_size(sum(step.left.moved for step in cost.steps)), f"{sum(step.left.objects for step in cost.steps):,}",
    )  # fmt: skip
    console.print(table)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    say("How it adds up (configs/README.md, What the cost says):")
    for step in cost.steps:
        for line in step.whole.how:
            say(f"  {step.label}: {line}")
        if step.state.state not in DONE and step.whole.measured:
            say(f"  {step.label}: measured {step.whole.measured}")
    path = [label for label in cost.schedule.critical if cost.schedule.end[label] > cost.schedule.start[label]]
    seconds = {step.label: step.left.duration for step in cost.steps}
    say(
        f"Critical path with at most {cost.parallel_stages} stages at one time on {_nodes(cost.options.nodes)}, "
        f"{span(cost.schedule.length)}: " + " → ".join(f"{label} {span(seconds[label])}" for label in path)
    )
    say(
        f"One after the other {span(sum(seconds.values()))}; side by side at most {cost.most_devices:.0f} accelerators "
        f"at one time. Keeping the store costs {money(cost.stored / 1e9 * cost.options.given.usd_per_gb_month)} USD a "
        f"month."
    )
    hours, usd = cost.rented
    if hours:
        say(
            f"GPU h and USD are of busy devices. {_nodes(cost.options.nodes)} from the first stage to the last: "
            f"{hours:,.0f} GPU h, {money(usd)} USD; --nodes says how many there are."
        )
    for line in _prices(cost):
        say(line)
    say(_assumed(cost.options.given))
    for step in cost.steps:
        for warning in step.left.warnings:
            say(f"WARNING {step.label}: {warning}")
        if step.left.nodes > cost.options.nodes:
            say(f"WARNING {step.label}: is for {step.left.nodes} nodes; --nodes says how many there are")


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count > 1 else ''}"


def _row(step: StepCost, cost: RunCost) -> tuple[str, ...]:
    whole, label = step.whole, step.label
    done = step.state.state in DONE
    forecast = whole if done else step.left
    devices = ""
    if whole.hardware is not None:
        nodes = f"{whole.nodes} × " if whole.nodes > 1 else ""
        devices = f"{nodes}{whole.devices // whole.nodes} {whole.hardware.name}"
    peak = whole.memory.get("peak", 0.0)
    mark = "*" if whole.measured and not done else ""
    return (
        f"{label} (done)" if done else f"{label}{mark}",
        _amount(whole.tokens),
        _amount(whole.flops),
        devices,
        byte_size(peak) if peak else "",
        span(forecast.duration),
        _gpu_hours(forecast.device_hours) if whole.uses_accelerators else "",
        money(forecast.usd(cost.options.prices or {})) if whole.hardware is not None else "",
        byte_size(whole.stored),
        byte_size(forecast.moved),
        f"{whole.objects:,}",
    )


def _prices(cost: RunCost) -> list[str]:
    used: dict[str, Hardware] = {}
    for step in cost.steps:
        if step.left.hardware is not None:
            used[step.left.hardware.name] = step.left.hardware
    prices = cost.options.prices or {}
    said = [
        f"{name} {prices.get(name, entry.usd_per_hour):.2f} USD an hour{'' if name in prices else ' (assumed)'}"
        for name, entry in used.items()
    ]
    return [f"Prices: {', '.join(said)}; --price NAME=USD sets yours."] if said else []


def _assumed(given: Assumptions) -> str:
    values = ", ".join(f"{name}={value:g}" for name, value in given.model_dump().items())
    return f"Assumed (--assume NAME=VALUE changes one): {values}"


def _amount(value: float) -> str:
    return f"{value:.3g}" if value else ""


def _gpu_hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours else ""
