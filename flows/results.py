"""What a finished run shows, in the terminal and in Prefect: the results, by benchmark too, and how the final model
stands."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from prefect.artifacts import create_table_artifact
from rich.console import Console
from rich.markup import escape
from rich.table import Column
from rich.table import Table as Drawn

from tasks.artifacts.store import Store
from tasks.publish.entries import MEAN, entries_table, entry_differences_table, has_several_entries
from tasks.publish.report import kl_by_model, read_results
from tasks.publish.stage import PublishConfig
from tasks.publish.tables import Table, headline, results_rows, results_table
from tasks.runtime.declare import Step


def show_results_in_prefect(steps: Sequence[Step], store: Store) -> None:
    """Leaves the results table as an artifact of the flow run; a finished run never fails by it."""
    evaluation = next(step for step in steps if step.stage.name == "evaluate")
    try:
        results = read_results(store, evaluation.directory)
        if results is not None:
            kl = kl_by_model(store, evaluation.directory)
            # Markdown would make a list of the line that explains a star.
            told = [line.replace("*", r"\*") for line in headline(results, kl)]
            if has_several_entries(results):
                told.append(entries_table(results, _expected(steps)).markdown())
            create_table_artifact(results_rows(results, kl), key="results", description="\n\n".join(told))
    except Exception as error:
        logging.getLogger(__name__).warning("the results could not be shown on the dashboard: %s", error)


def print_results(steps: Sequence[Step], store: Store, console: Console) -> None:
    """Prints the evaluation of a finished run, and where the model is."""
    evaluation = next(step for step in steps if step.stage.name == "evaluate")
    published = next(step for step in steps if step.stage.name == "publish")
    results = read_results(store, evaluation.directory)
    if results is None:
        return
    kl = kl_by_model(store, evaluation.directory)
    _draw(results_table(results, kl), console)
    for line in headline(results, kl):
        console.print(line, soft_wrap=True, markup=False)
    if has_several_entries(results):
        # A row a model, as above: there are more models than benchmarks, and the published row comes last.
        _draw(entries_table(results, _expected(steps)).transposed("model"), console)
        console.print(f"{results['candidate']} minus each other model, paired:", soft_wrap=True, markup=False)
        _draw(entry_differences_table(results).transposed("model"), console)
    console.print(f"model: {store.locate(published.directory)}", soft_wrap=True, markup=False)


def _draw(content: Table, console: Console) -> None:
    first, *others = map(escape, content.columns)
    table = Drawn(Column(first, no_wrap=True), *(Column(other, overflow="fold") for other in _without_family(others)))
    for row in content.rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _without_family(names: Sequence[str]) -> list[str]:
    """Benchmarks of one family without its name, such as "leaderboard_", so that six of them fit a terminal."""
    families = {"".join(name.partition("_")[:2]) for name in names if name != MEAN}
    family = families.pop() if len(families) == 1 else ""
    return [name.removeprefix(family) if family.endswith("_") else name for name in names]


def _expected(steps: Sequence[Step]) -> Mapping[str, float]:
    """The values that the profile expects, as its stage publish has them."""
    config = next(step for step in steps if step.stage.name == "publish").config
    assert isinstance(config, PublishConfig)
    return config.recipe.expected
