"""What was measured: every model with standard errors, the final one against each other, and published values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts.store import Store
from tasks.publish.asked import asked_table
from tasks.publish.entries import (
    entries_table,
    entry_differences_table,
    has_several_entries,
    nearness_note,
    nearness_table,
    tasks_are_entries,
)
from tasks.publish.page.blocks import Figure, Figures, Grid, Note, Section
from tasks.publish.page.estimates import Estimate, estimates_chart
from tasks.publish.page.material import RESULTS, StageRecord, object_json, of_stage
from tasks.publish.report import kl_by_model
from tasks.publish.tables import (
    MISSING,
    Table,
    all_alike_note,
    headline,
    ordered_models,
    results_table,
    served_lines,
    shown_error,
    tasks_table,
)

_COLUMNS = {"bits_per_byte": ("bits per byte", 4), "accuracy": ("accuracy", 3)}


def results_sections(
    records: Sequence[StageRecord], store: Store, expected: Mapping[str, float] | None
) -> list[Section]:
    """One section for each finished evaluation."""
    sections = []
    evaluations = of_stage(records, "evaluate")
    for record in evaluations:
        results = object_json(store, record, RESULTS)
        if results is None:
            continue
        kl = kl_by_model(store, record.directory)
        title = "Results" if len(evaluations) == 1 else f"Results of {record.label}"
        sections.append(
            Section(
                f"results-{record.label}",
                title,
                (
                    Note(_how(results)),
                    Figures((*_value_figures(results), *_difference_figures(results)), small=True),
                    Grid(results_table(results, kl), "Every model; ± is one standard error"),
                    Grid(differences_table(results), f"{results['candidate']} minus each other model, paired"),
                    *_footnotes(results, kl),
                    *map(Note, served_lines(results)),
                    *_by_entry(results, expected),
                    *([] if tasks_are_entries(results) else [Grid(tasks_table(results), "By task")]),
                    Grid(asked_table(results), "The tasks as they were run"),
                    *_nearness(results, expected),
                ),
            )
        )
    return sections


def differences_table(results: Mapping[str, Any]) -> Table:
    """The candidate minus every other model, over the same items and documents."""
    against = results["paired"][results["candidate"]]
    rows = []
    for name in (name for name in ordered_models(results) if name in against):
        accuracy, bits = against[name]["accuracy"], against[name].get("bits_per_byte")
        rows.append(
            (
                name,
                _difference(accuracy, 3),
                MISSING if accuracy["z"] is None else f"{accuracy['z']:+.1f}",
                _difference(bits, 4),
            )
        )
    return Table(("other model", "accuracy", "z of accuracy", "bits per byte"), tuple(rows))


def _difference(estimate: Mapping[str, Any] | None, digits: int) -> str:
    if estimate is None:
        return MISSING
    return f"{estimate['difference']:+.{digits}f} ± {estimate['stderr']:.{digits}f}"


def _how(results: Mapping[str, Any]) -> str:
    measured = headline(results, {})[0].partition(";")[0]
    told = (
        f"{measured} under lm-evaluation-harness {results['harness']['lm_eval']}, all models on the same. Bits per "
        f"byte (lower is better) compare across tokenizers, perplexities would not. "
        f"{results['candidate']} is what the run made, {results['reference']} what it is held against."
    )
    return " ".join(filter(None, [told, all_alike_note(results)]))


def _by_entry(results: Mapping[str, Any], expected: Mapping[str, float] | None) -> list[Any]:
    if not has_several_entries(results):
        return []
    return [
        Note("Accuracy above is over all items, so a benchmark counts by its size; the mean below has equal weights."),
        Grid(entries_table(results, expected), "By benchmark"),
        Grid(entry_differences_table(results), f"{results['candidate']} minus each other model by benchmark, paired"),
    ]


def _footnotes(results: Mapping[str, Any], kl: Mapping[str, Mapping[str, Any]]) -> list[Note]:
    told = headline(results, kl)[-1]
    notes = "KL to its teacher: nats a token on held-out documents, before → after the training, in the teacher's own "
    return [Note(f"{notes}vocabulary. {told if told.startswith('*') else ''}")] if kl else []


def _style(name: str, results: Mapping[str, Any]) -> str:
    return "key" if name == results["candidate"] else "base" if name == results["reference"] else "plain"


def _value_figures(results: Mapping[str, Any]) -> list[Figure]:
    figures = []
    for column, (title, digits) in _COLUMNS.items():
        found = [
            Estimate(name, model[column]["value"], shown_error(model[column]), _style(name, results))
            for name in ordered_models(results)
            if (model := results["models"][name]).get(column) is not None
        ]
        if found:
            better = "lower is better" if column == "bits_per_byte" else "higher is better"
            chart = estimates_chart(found, f"{title} of {len(found)} models with standard errors", title, digits=digits)
            figures.append(Figure(chart, f"{better}; bars are ± 1 standard error", title[0].upper() + title[1:]))
    return figures


def _difference_figures(results: Mapping[str, Any]) -> list[Figure]:
    candidate = results["candidate"]
    figures = []
    for column, (title, digits) in _COLUMNS.items():
        found = [
            Estimate(name, pair[column]["difference"], pair[column]["stderr"], _style(name, results))
            for name in ordered_models(results)
            if (pair := results["paired"][candidate].get(name)) is not None and column in pair
        ]
        if found:
            axis = f"{title}, {candidate} minus the other"
            chart = estimates_chart(found, f"Paired differences in {title}", axis, zero=True, digits=digits)
            better = "below zero" if column == "bits_per_byte" else "above zero"
            title = f"Difference in {title}"
            figures.append(Figure(chart, f"paired over the same items; {better} favours {candidate}", title))
    return figures


def _nearness(results: Mapping[str, Any], expected: Mapping[str, float] | None) -> list[Any]:
    if not expected:
        return []
    return [
        Note(nearness_note(results, expected)),
        Grid(nearness_table(results, expected), "Nearness to the published values"),
    ]
