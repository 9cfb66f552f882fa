"""Documents that share text with an item of an evaluation are left out of a corpus, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tasks.benchmarks.decontamination import read_index
from tasks.benchmarks.hub import confine_hub
from tasks.corpus.documents import Document
from tasks.corpus.stage import CorpusRuntime, DecontaminatedCorpusRecipe, HubSource
from tasks.exercises.holdout import Message
from tasks.worker.job import Job

CONTAMINATED = "contaminated"
NUM_EXAMPLES = 5


class Contamination:
    """Looks documents up among the items of a recipe's evaluation sets, and keeps the counts."""

    def __init__(self, job: Job, recipe: DecontaminatedCorpusRecipe) -> None:
        """Reads the sets. To be made before the library `datasets` is imported.

        Raises:
            BadInputError: a set cannot be read.
        """
        self._job = job
        self._settings = recipe.decontamination
        mirror = CorpusRuntime.model_validate(job.runtime).mirror
        from_hub = any(isinstance(source, HubSource) for source in recipe.sources)
        confine_hub(job.scratch, offline=False, mirror=None if from_hub else mirror)
        where = "corpus.recipe.decontamination.not_decontaminated"
        settings = self._settings
        self._index = read_index(settings, settings.evaluations, settings.not_decontaminated, mirror, self._log, where)
        self._compared = 0
        self._removed: Counter[str] = Counter()
        self._examples: list[dict[str, str]] = []

    def clean(self, documents: Iterable[Document]) -> list[Document]:
        """Those that share text with no item, in their order."""
        kept = []
        for document in documents:
            self._compared += 1
            why = self._index.judge(_spoken(document))
            if why is None:
                kept.append(document)
            else:
                self._removed[document.source] += 1
                if len(self._examples) < NUM_EXAMPLES:
                    self._examples.append({"document": document.sha256(), "source": document.source, **why})
            if self._job.progress_each_second(self._compared, None, "documents"):
                self._job.leave_if_asked()
        return kept

    @property
    def num_removed(self) -> int:
        """Documents that were left out."""
        return self._removed.total()

    def summary(self) -> dict[str, Any]:
        """The counts: documents compared, removed by source, and of each set its items and what they removed."""
        return {
            "documents": self._compared,
            "removed": dict(sorted(self._removed.items())),
            "evaluations": {
                name: {"items": count.items, "documents_removed": count.rows_removed, "sha256": count.sha256}
                for name, count in self._index.counts.items()
            },
            "not_decontaminated": dict(self._settings.not_decontaminated),
        }

    def examples(self) -> list[dict[str, str]]:
        """The first documents that were left out, by hash, with what spoke against them."""
        return self._examples

    def _log(self, text: str) -> None:
        self._job.log(text)
        self._job.leave_if_asked()


def _spoken(document: Document) -> list[Message]:
    """The turns without the system prompt, which many conversations share; a text is one turn."""
    if not document.messages:
        return [Message("text", document.content)]
    return [message for message in document.messages if message.role != "system"]
