"""results.json out of what was measured of each model, in this launch or an earlier one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.evaluate.stage import EvaluateRecipe
from tasks.modeling.equal_mean import equal_mean
from tasks.modeling.statistics import mean_with_error, paired_mean, paired_ratio, ratio_with_error


@dataclass(frozen=True)
class Measured:
    """One model's shard: its answers, its held-out documents (a long one is one, not its rows) and how it was run."""

    items: Sequence[Mapping[str, Any]]
    documents: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any]


def build_results(measured: Mapping[str, Measured], recipe: EvaluateRecipe) -> dict[str, Any]:
    """Everything that results.json holds.

    `paired[a][b]` is a minus b, over the same items and documents: b is the reference for every a, and every other
    model for the candidate. It has the accuracy over all items, that of each entry of the recipe, and bits per byte.

    Raises:
        BadInputError: two models were run by different versions of the harness or its tasks, or on different data.
    """
    _check_one_harness(measured)
    models = {name: _summary(each, recipe) for name, each in measured.items()}
    paired: dict[str, dict[str, Any]] = {}
    for name in measured:
        against = [other for other in measured if other != name] if name == recipe.candidate else [recipe.reference]
        pairs = {other: pair((name, other), measured[name], measured[other]) for other in against if other != name}
        if pairs:
            paired[name] = pairs
    return {
        "models": models,
        "paired": paired,
        "reference": recipe.reference,
        "candidate": recipe.candidate,
        "parents": list(recipe.parents),
        "harness": next(iter(measured.values())).about["harness"],
    }


def gate_metrics(results: Mapping[str, Any]) -> dict[str, Any]:
    """The single numbers that gates are judged on; None where the recipe measures no such thing."""
    candidate, models = results["candidate"], results["models"]
    own = models[candidate]
    excesses = [
        own["bits_per_byte"]["value"] / models[parent]["bits_per_byte"]["value"] - 1
        for parent in results["parents"]
        if "bits_per_byte" in own
    ]
    pair = results["paired"][candidate][results["reference"]]
    gain, entries = pair["accuracy"], list(pair["entries"].values())
    mean, mean_error = equal_mean([each["difference"] for each in entries], [each["stderr"] for each in entries])
    return {
        "candidate_over_reference": gain["difference"],
        "candidate_over_reference_stderr": gain["stderr"],
        "candidate_over_reference_z": gain["z"],
        "mean_over_reference": mean,
        "mean_over_reference_stderr": mean_error,
        "mean_over_reference_z": mean / mean_error if mean_error > 0 else None,
        "worst_parent_excess": max(excesses, default=None),
        "num_items": own["accuracy"]["n"],
        "num_documents": own["bits_per_byte"]["documents"] if "bits_per_byte" in own else 0,
    }


def _summary(measured: Measured, recipe: EvaluateRecipe) -> dict[str, Any]:
    metrics = {task: about["metric"] for task, about in measured.about["harness"]["tasks"].items()}
    summary: dict[str, Any] = {
        "accuracy": _mean(measured.items),
        "tasks": {
            task: {"metric": metrics[task], **_mean(list(items))}
            for task, items in groupby(measured.items, key=lambda item: item["task"])
        },
        "entries": _entries(measured.items, metrics),
        **{name: measured.about[name] for name in ("tokenizer", "served") if name in measured.about},
    }
    if recipe.bits_per_byte and "served" not in measured.about:
        summary["bits_per_byte"] = {
            **ratio_with_error(*_bits_and_bytes(measured)),
            "start_token": measured.about["start_token"],
            "window_tokens": measured.about["window_tokens"],
        }
    return summary


def _entries(items: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> dict[str, Any]:
    """The mean over all items of each entry of the recipe: a group's, over its tasks in proportion to their items."""
    return {entry: {"metric": metrics[own[0]["task"]], **_mean(own)} for entry, own in _by_entry(items).items()}


def _by_entry(items: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    pooled: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        pooled.setdefault(item["entry"], []).append(item)
    return pooled


def _mean(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return mean_with_error(_outcomes(items), _clusters(items))


def _outcomes(items: Sequence[Mapping[str, Any]]) -> list[float]:
    return [item["outcome"] for item in items]


def _clusters(items: Sequence[Mapping[str, Any]]) -> list[Hashable] | None:
    """What is one question, item by item; None where each is one of its own."""
    if all(item.get("cluster") is None for item in items):
        return None
    return [item["cluster"] if item.get("cluster") is not None else (item["task"], item["item"]) for item in items]


def pair(names: tuple[str, str], one: Measured, other: Measured) -> dict[str, Any]:
    """The first minus the second over all items, over those of each entry, and in bits per byte.

    Raises:
        BadInputError: an item was made of different documents.
    """
    keys = [[(item["task"], item["item"]) for item in each.items] for each in (one, other)]
    rows = [[document["document"] for document in each.documents] for each in (one, other)]
    assert keys[0] == keys[1], "models of one comparison answer the same items"
    assert rows[0] == rows[1] or not all(rows), "models of one comparison read the same documents"
    for item, against in zip(one.items, other.items, strict=True):
        if item.get("document") != against.get("document"):
            raise BadInputError(
                f"{names[0]} and {names[1]} were asked different questions as item {item['item']} of task "
                f"{item['task']}, since its data or their order changed between two launches; delete the receipts "
                f"shards/model-*-{item['entry']}.json of this evaluation and run again"
            )
    against_by_entry = _by_entry(other.items)
    found = {
        "accuracy": _paired(one.items, other.items),
        "entries": {entry: _paired(own, against_by_entry[entry]) for entry, own in _by_entry(one.items).items()},
    }
    if rows[0] and rows[1]:
        bits, sizes = _bits_and_bytes(one)
        found["bits_per_byte"] = paired_ratio(bits, _bits_and_bytes(other)[0], sizes)
    return found


def _paired(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return paired_mean(_outcomes(one), _outcomes(other), _clusters(one))


def _bits_and_bytes(measured: Measured) -> tuple[list[float], list[int]]:
    return (
        [document["bits"] for document in measured.documents],
        [document["num_bytes"] for document in measured.documents],
    )


def _check_one_harness(measured: Mapping[str, Measured]) -> None:
    (first, reference), *others = ((name, each.about["harness"]) for name, each in measured.items())
    for name, harness in others:
        if harness != reference:
            changed = [task for task, about in harness["tasks"].items() if about != reference["tasks"].get(task)]
            raise BadInputError(
                f"{first} and {name} were evaluated by different versions of the harness or its tasks, or on different "
                f"data{f' ({changed[0]})' if changed else ''}, which do not compare; delete the receipts "
                f"shards/model-*.json of this evaluation and run again"
            )
