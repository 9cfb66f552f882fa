"""A finished run with all that the page draws: logs, receipts of shards, a surgery's record, funnels, gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.publish.page.contents import read_report
from tasks.publish.page.material import JudgedGate, StageRecord, judged_gates
from tasks.publish.page.page import render_page
from tests.publish.conftest import Make

RecordOf = Callable[..., StageRecord]
LOG = [
    {"step": 0, "heldout_kl": 3.0, "heldout_ce": 4.0},
    {"step": 4, "loss": 2.5, "forward_kl": 2.4, "ce": 3.0, "grad_norm": 1.5, "lr": 0.002},
    {"step": 8, "loss": 1.25, "forward_kl": 1.2, "ce": 2.0, "grad_norm": 0.5, "lr": 0.001, "heldout_kl": 0.5},
]
COUNTS: dict[str, dict[str, int]] = {
    "shared": {"words": 700, "digits": 10, "total": 710},
    "mapped": {"special": 6, "total": 6},
    "composed": {"total": 0},
    "approximated": {"words": 8, "total": 8},
    "student_only": {"words": 3, "total": 3},
}


def html(
    records: Sequence[StageRecord], store: Store, profile: str, expected: Mapping[str, float] | None = None
) -> str:
    """The page of these stages."""
    return render_page(read_report(records, store, profile, expected))


def choice_record() -> dict[str, Any]:
    """What the stage that chooses keeps, of three candidates."""

    def model(bits: float) -> dict[str, Any]:
        measured = {"texts": _estimate(bits), "answers": _estimate(bits), "exercises": None, "cloze": _estimate(0.5)}
        return {"fault": None, **measured, "stops": {"stopped": 7, "prompts": 8, "lost": 0}}

    difference = {"difference": -0.5, "stderr": 0.02, "z": -25.0}
    return {
        "chosen": "tuned",
        "default": "fused",
        "reason": "tuned goes on: it is better",
        "rule": "the better one",
        "verdicts": {"fused": "is worse than tuned", "odd": "it gives logits that are not finite"},
        "models": {"fused": model(2.5), "tuned": model(2.0), "odd": {"fault": "it gives logits that are not finite"}},
        # As before there were cloze items.
        "minus_default": {"tuned": {"texts": difference, "answers": difference, "exercises": None}},
    }


def _estimate(value: float) -> dict[str, float]:
    return {"value": value, "stderr": 0.01}


@pytest.fixture
def record_of(store: Store) -> RecordOf:
    """record_of(artifact, gates=(…), **changes) is the stage of a finished artifact."""

    def build(artifact: Artifact, **changes: Any) -> StageRecord:
        manifest = artifact.manifest()
        assert manifest is not None
        labels = {role: each.directory.rsplit("/", 1)[1].rpartition("-")[0] for role, each in manifest.inputs.items()}
        fields: dict[str, Any] = {
            "label": manifest.label,
            "stage": manifest.stage,
            "key": manifest.key,
            "directory": artifact.directory,
            "state": "finished",
            "reason": "",
            "inputs": labels,
            "manifest": manifest,
            "gates": judged_gates(store, artifact.directory),
        }
        return StageRecord(**{**fields, **changes})

    return build


@pytest.fixture
def run(make: Make, pipeline: dict[str, Artifact], record_of: RecordOf) -> list[StageRecord]:
    """The pipeline of tests/publish with a training that has a log, a surgery, instructions, and two stages to come."""
    base, donor = pipeline["student"], pipeline["teacher-llama"]
    log = "".join(json.dumps(line) + "\n" for line in LOG).encode()
    trained = make(
        "sft", "sft", {"training_log.jsonl": log}, {"model": pipeline["fuse"]}, {"heldout_ce": 1.0}, {"steps": 8}
    )
    plan = {"counts": COUNTS, "mapped": [{"donor": "<|eot_id|>", "student": "<|im_end|>"}], "method": "omp"}
    bits = {"prose": 2.0, "non_latin": 8.0}
    surgery = make(
        "surgeon",
        "surgeon-llama",
        {"surgery.json": json.dumps(plan).encode()},
        {"student": base, "donor": donor},
        {
            "bits_per_byte_before": bits,
            "bits_per_byte_after": {kind: value * 1.25 for kind, value in bits.items()},
            "bits_per_byte_ratio": dict.fromkeys(bits, 1.25),
            "stops": {"prompts": 8, "before": 8, "after": 7, "lost_share": 0.125, "not_judged": None},
            "num_rows": 1024,
            "real_vocab_size": 724,
        },
        {"mode": "transplant", "method": "omp"},
    )
    counts = {"source": "autoevol", "seeds": 20, "evolved": 14, "answered": 12, "unchanged": 5, "calls": 90}
    found = {
        "method_history": [
            {
                "round": 0,
                "method_before": "a",
                "method_after": "b",
                "failure_rate_before": 0.5,
                "failure_rate_after": 0.25,
                "analysed": True,
                "proposals": {"b": 0.25, "c": 0.75},
                "unreadable_proposals": 1,
                "unreadable_verdicts": 2,
            }
        ],
        "served_models": ["small-model"],
    }
    source = {"kind": "autoevol", "evolver": {"model": "large-model"}, "judge": None}
    evolved = make(
        "evolve",
        "evolve",
        {"instructions.jsonl": b"{}\n", "evolve.json": json.dumps(found).encode()},
        metrics=counts,
        recipe={"source": source},
    )
    steps = [
        {"name": name, "removed": removed, "left": left}
        for name, removed, left in (("exact_duplicates", 2, 10), ("decontamination", 0, 10), ("near_duplicates", 1, 9))
    ]
    overlap = {"exercises": {"items": 50, "rows_removed": 0, "sha256": "0" * 64}}
    clean = make(
        "clean",
        "clean",
        {"clean.json": json.dumps({"steps": steps}).encode()},
        {"instructions": evolved},
        {"offered": 12, "rows": 9, "evaluations": overlap},
    )
    gates = (
        JudgedGate("lost", False, 0.125, "<= 0.05", "chats still stop"),
        JudgedGate("ratio", True, 1.25, "<= 2", "prose is still read"),
        JudgedGate("far", False, None, "<= 0.1", "branches are near", accepted="far branches are the point"),
    )
    records = [record_of(artifact) for artifact in pipeline.values()]
    records += [record_of(surgery, gates=gates), record_of(evolved), record_of(clean), record_of(trained)]
    records.append(
        StageRecord("publish", "publish", "f" * 64, "artifacts/publish/publish-ffffffffffffffff", "missing",
                    "2 inputs are missing", {"model": "sft", "evaluation": "evaluate"})
    )  # fmt: skip
    return records


class Reading(HTMLParser):
    """What a browser's parser would find: elements with their attributes, the words, and their element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self._open = [""]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "br", "hr", "input"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append((self._open[-1], data))

    @property
    def text(self) -> str:
        return "\n".join(data for _, data in self.words)

    def with_attribute(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]
