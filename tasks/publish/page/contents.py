"""What a report says, read once from a store; page.py and markdown.py give it its two forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.artifacts.store import Store
from tasks.planning.quantities import byte_size, span
from tasks.publish.page.blocks import Section
from tasks.publish.page.material import RESULTS, StageRecord, object_json, of_stage
from tasks.publish.page.sections.choice import choice_sections
from tasks.publish.page.sections.data import data_sections
from tasks.publish.page.sections.effort import effort_section, figures_section, lineage_section
from tasks.publish.page.sections.logits import logits_sections
from tasks.publish.page.sections.overview import gates_section, graph_section
from tasks.publish.page.sections.results import results_sections
from tasks.publish.page.sections.surgery import surgery_sections
from tasks.publish.page.sections.training import training_sections
from tasks.publish.tables import with_error


@dataclass(frozen=True)
class Report:
    """All that is said of a run."""

    profile: str
    store: str
    """URI."""
    made: str
    """When the last stage finished, as ISO 8601; empty if none did."""
    glance: tuple[tuple[str, str, str], ...]
    """(name, value, remark) of the few numbers at the top."""
    sections: tuple[Section, ...]


def read_report(
    records: Sequence[StageRecord], store: Store, profile: str, expected: Mapping[str, float] | None = None
) -> Report:
    """The report of these stages, finished or not.

    Args:
        records: inputs before what uses them, as `stage_records` gives them.
        expected: published value of each task, to be set beside the measured ones.
    """
    return Report(
        profile=profile,
        store=store.uri,
        made=max((r.manifest.provenance.created for r in records if r.manifest is not None), default=""),
        glance=tuple(_glance(records, store)),
        sections=(
            *results_sections(records, store, expected),
            *choice_sections(records, store),
            graph_section(records),
            gates_section(records),
            *training_sections(records, store),
            *logits_sections(records, store),
            *surgery_sections(records, store),
            *data_sections(records, store),
            effort_section(records),
            lineage_section(records),
            figures_section(records, store),
        ),
    )


def _glance(records: Sequence[StageRecord], store: Store) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the few numbers at the top."""
    told: list[tuple[str, str, str]] = []
    for record in of_stage(records, "evaluate")[:1]:
        results = object_json(store, record, RESULTS)
        if results is None:
            continue
        candidate, reference = results["candidate"], results["reference"]
        own, pair = results["models"][candidate], results["paired"][candidate].get(reference)
        told.append(
            (f"accuracy of {candidate}", with_error(own["accuracy"], digits=3), _against(pair, "accuracy", reference))
        )
        if "bits_per_byte" in own:
            bits = with_error(own["bits_per_byte"])
            told.append((f"bits per byte of {candidate}", bits, _against(pair, "bits_per_byte", reference)))
    finished = [record for record in records if record.manifest is not None]
    done = sum(record.state == "finished" for record in records)
    told.append(("stages finished", f"{done} of {len(records)}", _unfinished(records)))
    gates = [gate for record in records for gate in record.gates]
    accepted = sum(gate.accepted is not None for gate in gates)
    remark = f"{accepted} accepted" if accepted else ""
    told.append(("gates passed", f"{sum(gate.passed for gate in gates)} of {len(gates)}", remark))
    told.append(("time of all stages", span(sum(record.seconds or 0 for record in finished)), "one after another"))
    told.append(("kept in the store", byte_size(sum(record.num_bytes for record in finished)), ""))
    return told


def _against(pair: Mapping[str, Mapping[str, float]] | None, column: str, reference: str) -> str:
    if pair is None or column not in pair:
        return ""
    digits = 3 if column == "accuracy" else 4
    return f"{pair[column]['difference']:+.{digits}f} ± {pair[column]['stderr']:.{digits}f} against {reference}"


def _unfinished(records: Sequence[StageRecord]) -> str:
    states = [record.state for record in records if record.state != "finished"]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
