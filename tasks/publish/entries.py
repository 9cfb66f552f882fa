"""An evaluation by its entries: benchmarks, or kinds of exercises, and their mean with equal weights.

That mean is what model cards and the Open LLM Leaderboard show. The accuracy over all items counts an entry by its
size: of the leaderboard's six MMLU-Pro alone has more than half of the items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.modeling.equal_mean import equal_mean
from tasks.publish.tables import MISSING, Table, number, ordered_models, shown_error, signed, with_error

MEAN = "mean, equal weights"
_PROMPT_LEVEL = "prompt_level_strict_acc"


def has_several_entries(results: Mapping[str, Any]) -> bool:
    """Whether there is more to tell by entry than over all items."""
    return len(_own(results)["entries"]) > 1


def tasks_are_entries(results: Mapping[str, Any]) -> bool:
    """Whether a table by task would repeat the one by entry, as with exercises, of which each kind is both."""
    return has_several_entries(results) and set(_own(results)["tasks"]) == set(_own(results)["entries"])


def entries_table(results: Mapping[str, Any], expected: Mapping[str, float] | None = None) -> Table:
    """One row an entry and one for their mean, one column a model, with standard errors.

    Args:
        expected: published value of each entry, which makes a last column; one that is not measured is left out here.
    """
    names = ordered_models(results)
    own = _own(results)["entries"]
    published = {entry: value for entry, value in (expected or {}).items() if entry in own}
    rows = [
        (
            entry,
            about["metric"],
            str(about["n"]),
            *(with_error(results["models"][name]["entries"][entry], digits=3) for name in names),
            *((number(published.get(entry), 3),) if published else ()),
        )
        for entry, about in own.items()
    ]
    means = [_mean(results["models"][name]["entries"].values()) for name in names]
    # The mean of a part of them would be compared with that of all.
    whole = sum(published.values()) / len(own) if set(published) == set(own) else None
    last = (number(whole, 3),) if published else ()
    rows.append((MEAN, MISSING, MISSING, *(with_error(mean, digits=3) for mean in means), *last))
    return Table(("benchmark", "metric", "items", *names, *(("published",) if published else ())), tuple(rows))


def entry_differences_table(results: Mapping[str, Any]) -> Table:
    """The candidate minus every other model by entry, over the same items; one column a model."""
    against = results["paired"][results["candidate"]]
    names = [name for name in ordered_models(results) if name in against]
    rows = [
        (entry, *(_difference(against[name]["entries"][entry]) for name in names)) for entry in _own(results)["entries"]
    ]
    means = (_mean(against[name]["entries"].values(), "difference") for name in names)
    rows.append((MEAN, *map(_difference, means)))
    return Table(("benchmark", *names), tuple(rows))


def _mean(estimates: Iterable[Mapping[str, Any]], key: str = "value") -> dict[str, float]:
    """{key, stderr} of the mean over entries, as their errors are shown."""
    of = list(estimates)
    value, stderr = equal_mean([each[key] for each in of], [shown_error(each) for each in of])
    return {key: value, "stderr": stderr}


def nearness_table(results: Mapping[str, Any], expected: Mapping[str, float]) -> Table:
    """The candidate's results beside published values: difference and its size in standard errors of the measurement.

    `expected` names tasks or groups as the evaluation's recipe does; a task of a group may be named too.
    """
    measured = _measured(results)
    rows = []
    for task, published in expected.items():
        if task not in measured:
            rows.append((task, MISSING, MISSING, number(published), MISSING, MISSING))
            continue
        own = measured[task]
        difference, stderr = own["value"] - published, shown_error(own)
        rows.append(
            (
                task,
                own["metric"],
                with_error(own),
                number(published),
                f"{difference:+.4f}",
                f"{difference / stderr:+.1f}" if stderr > 0 else MISSING,
            )
        )
    return Table(("task", "metric", "measured", "published", "difference", "in standard errors"), tuple(rows))


def nearness_note(results: Mapping[str, Any], expected: Mapping[str, float]) -> str:
    """What is to be known before the two columns are compared."""
    note = (
        "Beside the values of the published card. The metric is the one measured here; that a published value is of "
        "the same metric, harness and template is not known."
    )
    if any(_measured(results).get(task, {}).get("metric") == _PROMPT_LEVEL for task in expected):
        # As the leaderboard's entries in model indexes name it: "inst_level_strict_acc and prompt_level_strict_acc".
        note += (
            f" {_PROMPT_LEVEL} counts prompts of which every instruction is followed; the Open LLM Leaderboard shows "
            f"its mean with inst_level_strict_acc, which counts single instructions and is mostly higher."
        )
    return note


def _measured(results: Mapping[str, Any]) -> dict[str, Any]:
    return {**_own(results)["tasks"], **_own(results)["entries"]}


def _own(results: Mapping[str, Any]) -> Mapping[str, Any]:
    own: Mapping[str, Any] = results["models"][results["candidate"]]
    return own


def _difference(estimate: Mapping[str, Any]) -> str:
    z = estimate["difference"] / estimate["stderr"] if estimate["stderr"] > 0 else None
    return signed(estimate, 3) + (f" (z {z:+.1f})" if z is not None else "")
