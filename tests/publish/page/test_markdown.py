"""The Markdown says what the page says: every section, every table, every cell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import GateFailedError
from tasks.artifacts.store import Store
from tasks.publish.page.blocks import Details, Grid, Listing, Note
from tasks.publish.page.contents import Report, read_report
from tasks.publish.page.markdown import render_markdown
from tasks.publish.page.material import StageRecord, judged_gates, stage_records
from tasks.publish.tables import plain
from tasks.runtime.declare import GateResult, Gates, Stage, StageConfig, Step
from tasks.runtime.gates import accept, judge
from tasks.runtime.state import StepState
from tests.publish.conftest import Make
from tests.publish.page.conftest import Reading, RecordOf, html


def blocks(report: Report) -> Iterator[object]:
    """All of a report's blocks, those that are folded away too."""
    waiting: list[object] = [block for section in report.sections for block in section.blocks]
    while waiting:
        block = waiting.pop(0)
        yield block
        if isinstance(block, Details):
            waiting += block.blocks


def test_nothing_of_the_page_is_missing(run: list[StageRecord], store: Store) -> None:
    report = read_report(run, store, "tiny", {"exercise_add": 0.7})
    text = render_markdown(report)
    assert text.startswith("# Run of the profile tiny\n")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == [section.title for section in report.sections]
    assert {"Vocabulary surgery", "Fusion", "Data", "Time, size and cost", "Distillation", "Gates"} <= set(titles)
    seen = 0
    for block in blocks(report):
        match block:
            case Grid() if block.table.rows:
                assert plain(block.caption) in text
                for row in block.table.rows:
                    assert "| " + " | ".join(plain(cell).replace("|", "\\|") for cell in row) + " |" in text
                    seen += 1
            case Note():
                assert plain(block.text) in text
            case Listing():
                assert block.text.rstrip() in text
    assert seen > 100
    for name, value, _ in report.glance:
        assert f"- {name}: {value}" in text
    # Amounts that the page draws stand in tables, for those who read only them.
    assert "| evolve | unchanged | 5 |" in text
    assert "| evolve | 1 | 0.50 | 0.25 0.75 | 0.25 | changed | read | 1 | 2 |" in text
    assert "evolve names large-model, and the endpoint says that small-model answered" in text
    assert "| sft | 8 | 2.5000 → 1.2500 |" in text
    assert "| clean | near duplicates | 1 | 9 |" in text


def test_gates_are_told_once_for_both(pipeline: dict[str, Artifact], store: Store, record_of: RecordOf) -> None:
    fuse = pipeline["fuse"].manifest()
    assert fuse is not None
    failing = [
        GateResult("close", False, 0.5, 0.1, "<=", "branches are near"),
        GateResult("rows", True, 8.0, 8.0, ">=", "rows fit"),
        GateResult("lost", False, None, 1.0, ">=", "nothing is lost"),
    ]
    stage = Stage("fuse", 1, StageConfig, lambda _metrics, _gates: failing)
    with pytest.raises(GateFailedError, match="gate close"):
        judge(Step(stage, "fuse", StageConfig(recipe=Gates()), {}), pipeline["fuse"], fuse)
    accept(pipeline["fuse"], "close", "far branches are the point")
    record = record_of(pipeline["fuse"], gates=judged_gates(store, pipeline["fuse"].directory))
    text = render_markdown(read_report([record], store, "tiny"))
    assert "| fuse | close | 0.5 | <= 0.1 | ✕ accepted: far branches are the point | branches are near |" in text
    assert "| fuse | lost | – | >= 1 | ✕ failed | nothing is lost |" in text
    assert "| fuse | rows | 8 | >= 8 | ✓ passed | rows fit |" in text


def test_a_cost_where_the_hardware_has_a_price(make: Make, store: Store, record_of: RecordOf) -> None:
    def cost(hardware: Mapping[str, object], **runtime: object) -> str:
        record = record_of(
            make("sft", "sft", {"x": json.dumps([hardware, runtime]).encode()}, recipe={**runtime, **hardware})
        )
        assert record.manifest is not None
        provenance = record.manifest.provenance.model_copy(
            update={"seconds": 7200.0, "hardware": hardware, "runtime": runtime}
        )
        record = replace(record, manifest=record.manifest.model_copy(update={"provenance": provenance}))
        report = read_report([record], store, "tiny")
        table = next(b.table for b in blocks(report) if isinstance(b, Grid) and "cost" in b.table.columns)
        assert table.rows[0][table.columns.index("cost")] in Reading(html([record], store, "tiny")).text
        return table.rows[0][table.columns.index("cost")]

    h100 = {"accelerators": ["NVIDIA H100 80GB HBM3"] * 8}
    # Two hours of 16 devices at 2.50 an hour.
    assert cost(h100, num_processes=8, num_nodes=2, device="auto") == "USD 80"
    assert cost({"accelerators": []}, threads=2, device="auto") == "USD 0.16"
    assert cost(h100, threads=2, device="cpu") == "USD 0.16"
    unknown = "no price known for this hardware"
    assert cost({"accelerators": ["NVIDIA H900"]}) == unknown
    assert cost({"accelerators": ["NVIDIA H200", "NVIDIA B200"]}) == unknown
    assert cost({"accelerators": []}, device="cuda") == unknown
    assert cost({"accelerators": []}, num_nodes=2) == unknown
    assert cost({"cpus": 2}) == unknown, "written before accelerators were"


def test_the_sum_has_what_endpoints_were_paid_and_says_what_it_lacks(
    make: Make, store: Store, record_of: RecordOf
) -> None:
    def stage(name: str, metrics: Mapping[str, object] | None = None, **changes: object) -> StageRecord:
        record = record_of(make(name, name, {"x": name.encode()}, metrics=metrics, recipe={"tried": str(metrics)}))
        assert record.manifest is not None
        h100 = {"hardware": {"accelerators": ["NVIDIA H100 80GB HBM3"]}, "runtime": {"device": "auto"}}
        provenance = record.manifest.provenance.model_copy(update={"seconds": 7200.0, **h100, **changes})
        return replace(record, manifest=record.manifest.model_copy(update={"provenance": provenance}))

    def sums(*records: StageRecord) -> list[tuple[str, ...]]:
        report = read_report(records, store, "tiny")
        table = next(b.table for b in blocks(report) if isinstance(b, Grid) and "not in it" in b.table.columns)
        text = Reading(html(list(records), store, "tiny")).text
        assert all(cell in text for row in table.rows for cell in row)
        return list(table.rows)

    trained = stage("sft")
    assert sums(trained) == [("devices of 1 of 1 stages", "5.00", "–")]
    evolved = stage("evolve", {"calls": 90, "cost_usd": 21.5})
    paid = ("endpoints, all launches", "22", "–")
    assert sums(trained, evolved) == [("devices of 2 of 2 stages", "10", "–"), paid, ("together", "32", "–")]
    # Objects of two launches, two logs, or calls of an earlier one.
    for resumed in (
        stage("sft", attempts=2),
        replace(stage("sft"), launches_seen=2),
        stage("sft", {"calls_of_earlier_launches": 3}),
    ):
        lacks = "other launches of sft"
        devices = ("devices of 2 of 2 stages", "at least 10", lacks)
        assert sums(resumed, evolved) == [devices, paid, ("together", "at least 32", lacks)]
        text = render_markdown(read_report([resumed, evolved], store, "tiny"))
        assert "The stages took at least 4" in text
        assert "sft took longer" in text
    partly = stage("evolve", {"calls": 90, "cost_usd": 4.0})
    assert partly.manifest is not None
    models = {"source": {"evolver": {"model": "a"}, "answerer": {"model": "b"}, "judge": None}}
    partly = replace(partly, manifest=partly.manifest.model_copy(update={"recipe": models}))
    assert sums(partly)[1] == ("endpoints, all launches", "at least 4.00", "no price given for calls of evolve")
    unpriced = stage("evolve", {"calls": 90}, hardware={"accelerators": ["NVIDIA H900"]})
    assert sums(trained, unpriced)[1:] == [
        ("endpoints, all launches", "unknown", "no price given for calls of evolve"),
        (
            "together",
            "at least 5.00",
            "no price known for the hardware of evolve; no price given for calls of evolve",
        ),
    ]


def test_launches_are_counted_by_what_they_left(make: Make, store: Store) -> None:
    manifest = make("sft", "sft", {"x": b"1"}).manifest()
    assert manifest is not None
    attempt = manifest.objects[0].path.split("/")[1].rpartition("-")[2]
    step = Step(Stage("sft", 1, StageConfig), "sft", StageConfig(recipe=Gates()), {})

    def launches(*left: str) -> int:
        for name in left:
            store.create(f"{step.directory}/{name}", b"")
        (record,) = stage_records([StepState(step, "finished", "", manifest=manifest)], store)
        return record.launches

    assert launches() == 1
    assert launches(f"logs/worker-{attempt}.log", f"logs/{attempt}/performance.jsonl") == 1
    assert launches(f"checkpoints/step-8-{attempt}.json", "checkpoints/step-4-0badcafe/state.pt") == 2
    assert launches("checkpoints/step-4-0badcafe.json", "logs/worker-deadbeef.log") == 3


def test_what_is_hostile_is_only_text(run: list[StageRecord], store: Store) -> None:
    hostile = "</h1><script>alert(1)</script>\n# not a heading | not a cell"
    records = [*run, replace(run[-1], label=hostile, state=hostile, reason=hostile, inputs={hostile: "sft"})]
    text = render_markdown(read_report(records, store, hostile))
    assert "<script" not in text.replace("\\<script", "")
    assert "\n# not a heading" not in text


def test_a_fence_is_longer_than_what_it_holds(make: Make, store: Store, record_of: RecordOf) -> None:
    record = record_of(make("evolve", "evolve", {"x": b""}, recipe={"method": "```\n# not a heading\n````"}))
    text = render_markdown(read_report([record], store, "tiny"))
    assert "`````\nmethod:" in text
