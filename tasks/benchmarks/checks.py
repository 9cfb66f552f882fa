"""What is asked of a harness task before any model answers it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import handle_non_serializable

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.declare import HarnessTasks


def check_metric(name: str, task: ConfigurableTask, metric: str) -> None:
    """Raises BadInputError if the task has no such metric that is a mean over items."""
    usable = sorted(key for key, aggregation in task.aggregation().items() if aggregation is mean)
    if metric not in usable:
        raise BadInputError(
            f"task {name} has no metric {metric!r} that is a mean over items; choose one of: "
            f"{', '.join(usable) or 'none, so leave the task out'}"
        )


def check_version(name: str, task: ConfigurableTask, entry: HarnessTasks) -> None:
    """Raises BadInputError if the recipe states another version of the task than the harness has."""
    found = str(task.VERSION)
    if entry.version is not None and entry.version != found:
        raise BadInputError(
            f"task {name} has version {found} in the installed harness, and evaluate.recipe.tasks states "
            f"{entry.version} for {entry.name}; install the lm-eval that has it, or state {found}"
        )


def check_documents(name: str, task: ConfigurableTask, entry: HarnessTasks) -> None:
    """Raises BadInputError if a standard error cannot be made of the documents that are asked, or of their clusters."""
    documents = list(task.eval_docs)[: entry.limit]
    if len(documents) < 2:
        raise BadInputError(
            f"task {name} has {len(documents)} documents, and a standard error needs two; complete its data, or leave "
            f"the task out"
        )
    if entry.cluster is None:
        return
    if any(entry.cluster not in document for document in documents):
        raise BadInputError(
            f"the documents of task {name} have no field {entry.cluster!r} to cluster by; choose one of: "
            f"{', '.join(sorted(documents[0]))}, or take `cluster` out of {entry.name} in evaluate.recipe.tasks"
        )
    if len({str(document[entry.cluster]) for document in documents}) < 2:
        raise BadInputError(
            f"all documents of task {name} have one {entry.cluster!r}, and a standard error needs two clusters; "
            f"choose another field as `cluster` of {entry.name} in evaluate.recipe.tasks"
        )


def check_data(entry: HarnessTasks, found: str) -> None:
    """Raises BadInputError if the recipe states other data than were read."""
    if entry.data_sha256 is not None and entry.data_sha256 != found:
        raise BadInputError(
            f"the data of {entry.name} have the sha256 {found}, and evaluate.recipe.tasks states {entry.data_sha256}; "
            f"read the release of the data that was stated, or state this one as data_sha256"
        )


def check_scoring(name: str, task: ConfigurableTask) -> None:
    """Raises BadInputError if answers could not be scored once they are generated."""
    # IFEval's rules count sentences with NLTK, which asks the network for its data as they are first loaded.
    if "instructions_registry" not in getattr(task.config.process_results, "__globals__", {}):
        return
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError as error:
        raise BadInputError(
            f"task {name} counts sentences with NLTK's punkt_tab, which this machine does not have; put the folder at "
            f"nltk_data/tokenizers/punkt_tab in the folder of mirrored data sets, or run: "
            f"python -m nltk.downloader punkt_tab"
        ) from error


def documents_sha256(task: ConfigurableTask) -> str:
    """Hex sha256 of the documents that are asked, and of those that examples are drawn from, if there are any."""
    examples: Iterable[Mapping[str, Any]] = ()
    if (task.get_config("num_fewshot") or 0) > 0 and hasattr(task, "sampler"):
        examples = task.sampler.df
    digest = hashlib.sha256()
    for document in chain(task.eval_docs, examples):
        text = json.dumps(document, sort_keys=True, ensure_ascii=False, default=handle_non_serializable)
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
