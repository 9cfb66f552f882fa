"""The card says what was removed from instructions and corpora, and with which evaluations they were not compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.publish.lineage import Ancestor
from tasks.publish.steps import steps_text

METRICS: dict[str, Any] = {
    "offered": 1200,
    "rows": 1100,
    "removed_share": 100 / 1200,
    "removed": {"exact_duplicates": 60, "decontamination": 40},
    "evaluations": {"leaderboard_bbh": {"items": 6511, "rows_removed": 40, "sha256": "0" * 64}},
    "not_decontaminated": {"leaderboard_gpqa": "its terms forbid a copy here"},
}


def test_the_card_has_the_counts_and_the_reasons(make: Callable[..., Artifact]) -> None:
    def step_of(**changes: Any) -> str:
        metrics = {**METRICS, **changes}
        cleaned = make("clean", "clean", {"clean.json": b"{}"}, metrics=metrics, recipe={"tried": str(changes)})
        manifest = cleaned.manifest()
        assert manifest is not None
        return steps_text([Ancestor(cleaned.directory, manifest)], "TIES")

    assert step_of() == (
        "1. The instructions were cleaned: of 1,200 rows 1,100 are left (removed: decontamination 40, exact duplicates "
        "60); compared with the evaluations leaderboard_bbh (6,511 items); not compared with leaderboard_gpqa: its "
        "terms forbid a copy here (`clean`)."
    )
    assert "compared with no evaluation; not compared with leaderboard_gpqa" in step_of(evaluations={})
    off = step_of(removed={"length": 3}, evaluations={}, not_decontaminated={})
    assert off.endswith("(removed: length 3); they were compared with no evaluation (`clean`).")


def test_each_corpus_says_what_its_own_documents_were_compared_with(make: Callable[..., Artifact]) -> None:
    def steps(*corpora: Artifact) -> list[str]:
        lineage = [Ancestor(each.directory, manifest) for each in corpora if (manifest := each.manifest()) is not None]
        return steps_text(lineage, "TIES").splitlines()

    hub = {"kind": "hub", "dataset": "owner/name"}
    own: dict[str, Any] = {"kind": "instructions"}
    told = {
        "documents": 475_000,
        "removed": {"hub/owner/name": 31, "hub/owner/web": 2},
        "evaluations": {"leaderboard_bbh": {"items": 6511, "documents_removed": 33, "sha256": "0" * 64}},
        "not_decontaminated": {"leaderboard_gpqa": "its terms forbid a copy here"},
    }
    compared = make("corpus", "corpus-llama", {"a": b"1"}, metrics={"decontamination": told}, recipe={"sources": [hub]})
    raw = make("corpus", "corpus-qwen", {"a": b"2"}, metrics={}, recipe={"sources": [hub], "seed": 1})
    evolved = make("evolve", "evolve", {"a": b"3"}, metrics={"answered": 9, "seeds": 9}, recipe={"source": {
        "kind": "exercises"}})  # fmt: skip
    cleaned = make("clean", "clean", {"a": b"4"}, {"instructions": evolved}, metrics=METRICS)
    tuned = make("corpus", "corpus-sft", {"a": b"5"}, {"instructions": cleaned}, recipe={"sources": [own]})
    mixed = make("corpus", "corpus-mixed", {"a": b"6"}, {"instructions": cleaned}, recipe={"sources": [own, hub]})
    unclean = make("corpus", "corpus-unclean", {"a": b"7"}, {"instructions": evolved}, recipe={"sources": [own]})
    lines = {line.split("(`")[-1].split("`")[0]: line for line in steps(
        compared, raw, evolved, cleaned, tuned, mixed, unclean)}  # fmt: skip
    assert (
        "; of 475,000 documents 33 share text with an evaluation and were left out; compared with the evaluations "
        "leaderboard_bbh (6,511 items); not compared with leaderboard_gpqa: its terms forbid a copy here"
    ) in lines["corpus-llama"]
    assert lines["corpus-qwen"].endswith("; they were compared with no evaluation (`corpus-qwen`).")
    assert lines["corpus-unclean"].endswith("; they were compared with no evaluation (`corpus-unclean`).")
    assert "all but the instructions were compared with no evaluation" in lines["corpus-mixed"]
    assert "compared" not in lines["corpus-sft"], "the step clean says it of them"
