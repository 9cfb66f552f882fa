"""What a finished run shows, in the terminal and in Prefect: the results table and how the final model stands."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prefect.artifacts import create_table_artifact
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.artifacts.store import Store
from tasks.publish.report import kl_by_model, read_results
from tasks.publish.tables import headline, results_rows, results_table
from tasks.runtime.declare import Step


def show_results_in_prefect(steps: Sequence[Step], store: Store) -> None:
    """Leaves the results table as an artifact of the flow run; a finished run never fails by it."""
    evaluation = next(step for step in steps if step.stage.name == "evaluate")
    try:
        results = read_results(store, evaluation.directory)
        if results is not None:
            kl = kl_by_model(store, evaluation.directory)
            lines = "\n\n".join(headline(results, kl))
            create_table_artifact(results_rows(results, kl), key="results", description=lines)
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
    content = results_table(results, kl)
    table = Table(*content.columns)
    for row in content.rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    for line in headline(results, kl):
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"model: {store.locate(published.directory)}", soft_wrap=True, markup=False)
