"""The page says what the store holds, escapes what it is told, and is whole without anything from elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.publish.page.blocks import Grid
from tasks.publish.page.material import StageRecord, captured_histogram
from tasks.publish.page.sections.results import differences_table
from tasks.publish.report import read_results
from tasks.publish.tables import Table
from tests.publish.conftest import Make, second_entry
from tests.publish.page.conftest import Reading, RecordOf, html

HOSTILE = (
    """</title></style></pre></svg><script>alert(1)</script><img src=//evil.test/x onerror="alert(2)">'"&{{7*7}}"""
)


def test_the_page_has_every_section_and_the_store_s_numbers(run: list[StageRecord], store: Store) -> None:
    page = Reading(html(run, store, "tiny", {"exercise_add": 0.7}))
    titles = [data for tag, data in page.words if tag == "h2"]
    assert titles == [
        "Results", "Stages", "Gates", "Distillation", "Fine-tuning", "Stored logits", "Vocabulary surgery", "Fusion",
        "Data", "Time, size and cost", "Lineage and keys", "Figures of each stage",
    ]  # fmt: skip
    evaluation = next(record for record in run if record.stage == "evaluate")
    results = read_results(store, evaluation.directory)
    assert results is not None
    final = results["models"]["final"]
    assert f"{final['accuracy']['value']:.3f} ± {final['accuracy']['stderr']:.3f}" in page.text
    assert f"{final['bits_per_byte']['value']:.4f} ± {final['bits_per_byte']['stderr']:.4f}" in page.text
    # The published value stands beside the measured one, with its distance.
    assert f"{final['accuracy']['value'] - 0.7:+.4f}" in page.text
    assert "✕ accepted: far branches are the point" in page.text
    assert "✕ failed" in page.text
    assert "1 of 3 gates passed" in page.text
    for record in run:
        assert record.key[:16] in page.text, record.label
        if record.manifest is not None:
            assert record.manifest.digest in page.text, record.label
    assert "8 → 7 of 8" in page.text
    assert "2.5000 → 1.2500" in page.text, "the ends of the loss"
    assert "60 % of what was offered became instructions" in page.text
    drawn = [data for tag, data in page.words if tag == "text"]
    start = drawn.index("exact duplicates")
    assert drawn[start : start + 6] == [
        "exact duplicates", "10 (−2)", "decontamination", "10", "near duplicates", "9 (−1)"
    ]  # fmt: skip


def test_benchmarks_are_told_each_and_with_their_mean(
    make: Make, pipeline: dict[str, Artifact], record_of: RecordOf, store: Store
) -> None:
    results = read_results(store, pipeline["evaluate"].directory)
    assert results is not None
    data = json.dumps(second_entry(results)).encode()
    record = record_of(make("evaluate", "evaluate-both", {"results.json": data}, {"model.final": pipeline["fuse"]}))
    page = Reading(html([record], store, "tiny", {"exercise_add": 0.7, "leaderboard_gpqa": 0.36}))
    for caption in ("By benchmark", "final minus each other model by benchmark, paired", "By task"):
        assert caption in page.text
    assert [data for tag, data in page.words if tag == "td" and data == "0.530"], "the mean of the published values"
    assert "mean, equal weights" in page.text


def test_differences_are_the_paired_ones(run: list[StageRecord], store: Store) -> None:
    evaluation = next(record for record in run if record.stage == "evaluate")
    results = read_results(store, evaluation.directory)
    assert results is not None
    rows = {row[0]: row[1:] for row in differences_table(results).rows}
    assert set(rows) == set(results["models"]) - {"final"}
    pair = results["paired"]["final"]["base"]
    assert rows["base"] == (
        f"{pair['accuracy']['difference']:+.3f} ± {pair['accuracy']['stderr']:.3f}",
        f"{pair['accuracy']['z']:+.1f}",
        f"{pair['bits_per_byte']['difference']:+.4f} ± {pair['bits_per_byte']['stderr']:.4f}",
    )


def test_what_is_hostile_is_only_text(run: list[StageRecord], make: Make, record_of: RecordOf, store: Store) -> None:
    """In the profile's name, a label, a reason, a gate, a metric, a recipe, a data source and a curve."""
    corpus = make(
        "corpus",
        "corpus-hostile",
        {"x": b""},
        metrics={"train_rows": 3, "rows_by_source": {"train": {HOSTILE: 3}}, "dropped": {HOSTILE: 1}, HOSTILE: HOSTILE},
        recipe={"source": HOSTILE},
    )
    gate = replace(next(r for r in run if r.gates).gates[0], gate=HOSTILE, meaning=HOSTILE, accepted=HOSTILE)
    log = json.dumps({"step": 1, "loss": 1.0}).encode()
    training = record_of(make("sft", "sft-hostile", {"training_log.jsonl": log}), label=HOSTILE, reason=HOSTILE)
    records = [*run, record_of(corpus, gates=(gate,)), training]
    records.append(replace(run[-1], label=f"2{HOSTILE}", state=HOSTILE, reason=HOSTILE, inputs={HOSTILE: HOSTILE}))
    page = Reading(html(records, store, HOSTILE, {HOSTILE: 0.5}))

    plain = Reading(html(run, store, "tiny", {"exercise_add": 0.7}))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert {name for _, attributes in page.elements for name in attributes} == {
        name for _, attributes in plain.elements for name in attributes
    }
    assert ("h1", HOSTILE) in page.words
    assert page.text.count(HOSTILE) > 15
    assert "49" not in [data.strip() for _, data in page.words], "no template is read out of a name"


def test_the_page_asks_for_nothing_and_its_parts_can_be_found(run: list[StageRecord], store: Store) -> None:
    page = Reading(html(run, store, "tiny", {"exercise_add": 0.7}))
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "image",
        "use",
    }
    assert not page.with_attribute("src")
    style = "".join(data for tag, data in page.words if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    ids = page.with_attribute("id")
    assert len(ids) == len(set(ids))
    links = page.with_attribute("href")
    assert {f"#stage-{record.label}" for record in run} <= set(links)
    assert {link.removeprefix("#") for link in links} <= set(ids)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_can_be_read_without_seeing_it(run: list[StageRecord], store: Store) -> None:
    page = Reading(html(run, store, "tiny", {"exercise_add": 0.7}))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") > 10
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in page.elements if tag == "th")
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(drawings) > 10
    for attributes in drawings:
        assert attributes.get("aria-hidden") == "true" or (
            attributes.get("role") == "img" and len(attributes.get("aria-label") or "") > 10
        )
    assert next(attributes for tag, attributes in page.elements if tag == "html")["lang"] == "en"
    assert tags.count("h1") == tags.count("main") == tags.count("nav") == 1


def test_a_run_that_made_nothing_has_a_page(store: Store) -> None:
    record = StageRecord("corpus", "corpus", "0" * 64, "artifacts/corpus/corpus-0", "missing", "ready to run", {})
    page = Reading(html([record], store, "tiny"))
    assert "0 of 1" in page.text
    assert "No stage has been judged yet." in page.text
    assert Reading(html([], store, "tiny")).text


def test_a_lost_object_costs_its_drawing_only(run: list[StageRecord], store: Store) -> None:
    record = next(record for record in run if record.stage == "sft")
    assert record.manifest is not None
    whole = html(run, store, "tiny")
    store.delete(f"{record.directory}/{record.manifest.objects[0].path}")
    page = html(run, store, "tiny")
    assert whole.count("Training loss of sft") > page.count("Training loss of sft") == 0
    assert len(page) > 0.8 * len(whole)


@pytest.mark.parametrize("damaged", [None, b"", b'{"candidate": 1}'])
def test_results_that_are_damaged_cost_their_section_only(
    run: list[StageRecord], store: Store, damaged: bytes | None
) -> None:
    record = next(record for record in run if record.stage == "evaluate")
    assert record.manifest is not None
    entry = record.manifest.object("results.json")
    assert entry is not None
    path = f"{record.directory}/{entry.path}"
    store.delete(path)
    if damaged is not None:
        store.put(path, damaged)
    page = Reading(html(run, store, "tiny"))
    titles = [data for tag, data in page.words if tag == "h2"]
    assert titles[:2] == ["Stages", "Gates"]
    assert "accuracy of final" not in page.text


def test_captured_mass_is_summed_over_the_shards(
    make: Make, pipeline: dict[str, Artifact], record_of: RecordOf, store: Store
) -> None:
    record = record_of(pipeline["dump-llama"])
    shards = {"train-0": [0, 1, 2], "train-1": [5, 0, 1], "prior": None}
    for name, bins in shards.items():
        metrics = {} if bins is None else {"captured_histogram": bins}
        store.put(f"{record.directory}/shards/{name}.json", json.dumps({"metrics": metrics}).encode())
    assert captured_histogram(store, record) == ([5, 1, 3], 2, 2)
    page = Reading(html([record], store, "tiny"))
    assert "Captured mass" in page.text


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (("1.5", "–"), True),
        (("0.8200 ± 0.0120", "+0.1 ± 0.2"), True),
        (("3.0000 → 0.5000*", "–"), True),
        (("1,024", "12.5 MB"), True),
        (("53 min", "0.0 %"), True),
        (("1.5", "at most 8"), False),
        (("0123456789abcdef",), False),
        ((), False),
    ],
)
def test_only_columns_of_numbers_stand_to_the_right(cells: tuple[str, ...], numeric: bool) -> None:
    table = Table(("name", "value"), tuple((f"{i}", cell) for i, cell in enumerate(cells)))
    assert Grid(table, "").numeric == (False, numeric)


def test_the_page_loads_nothing_heavy() -> None:
    heavy = "('torch', 'prefect', 'transformers', 'matplotlib', 'zarr')"
    code = f"import sys, tasks.publish.page.page; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
