import subprocess
import sys
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import GateFailedError
from tasks.artifacts.store import Store
from tasks.publish.lineage import ancestors
from tasks.publish.report import Step, kl_by_model, read_results, write_report
from tasks.publish.tables import Table, headline, nearness_table, results_rows
from tasks.runtime.declare import GateResult, Gates, Stage, StageConfig
from tasks.runtime.declare import Step as DagStep
from tasks.runtime.gates import accept, judge


def steps_of(pipeline: dict[str, Artifact]) -> list[Step]:
    return [
        (label, artifact.directory.split("/")[1], artifact.directory, "reused") for label, artifact in pipeline.items()
    ]


def test_a_row_a_model_with_errors_and_kl_only_where_it_is_defined(store: Store, pipeline: dict[str, Artifact]) -> None:
    results = read_results(store, pipeline["evaluate"].directory)
    assert results is not None
    kl = kl_by_model(store, pipeline["evaluate"].directory)
    rows = {row["model"]: row for row in results_rows(results, kl)}
    assert list(rows) == ["base", "branch-llama", "branch-qwen", "twin-qwen", "final"]
    assert {name: row["KL to its teacher"] for name, row in rows.items()} == {
        "base": "–",
        "branch-llama": "3.0000 → 0.5000*",
        "branch-qwen": "3.0000 → 0.5000",
        "twin-qwen": "3.0000 → 1.2500",
        "final": "–",
    }
    accuracy = results["models"]["final"]["accuracy"]
    assert rows["final"]["accuracy"] == f"{accuracy['value']:.3f} ± {accuracy['stderr']:.3f}"
    lines = headline(results, kl)
    assert "50 items and 20 held-out texts (2000 bytes)" in lines[0]
    pair = results["paired"]["final"]["twin-qwen"]["accuracy"]
    (line,) = [line for line in lines if line.startswith("final minus twin-qwen")]
    assert f"{pair['difference']:+.3f} ± {pair['stderr']:.3f} (z {pair['z']:.1f})" in line


def test_the_report_tells_steps_gates_dumps_and_twins(
    store: Store, pipeline: dict[str, Artifact], tmp_path: Path
) -> None:
    fuse = pipeline["fuse"].manifest()
    assert fuse is not None
    failing = [
        GateResult("close", False, 0.5, 0.1, "<=", "branches are near"),
        GateResult("rows", True, 8.0, 8.0, ">=", "rows fit"),
        GateResult("lost", False, None, 1.0, ">=", "nothing is lost"),
    ]
    stage = Stage("fuse", 1, StageConfig, lambda _metrics, _gates: failing)
    step = DagStep(stage, "fuse", StageConfig(recipe=Gates()), {})
    with pytest.raises(GateFailedError, match="gate close"):
        judge(step, pipeline["fuse"], fuse)
    accept(pipeline["fuse"], "close", "far branches are the point")
    steps = [*steps_of(pipeline), ("sft", "sft", "artifacts/sft/sft-0123456789abcdef", "missing")]
    text = write_report(store, steps, tmp_path / "report.md", "tiny", {"exercise_add": 0.7}).read_text()
    assert text.startswith("# Run of the profile tiny\n")
    assert f"| fuse | fuse | reused | {fuse.key[:16]} | {fuse.digest[:16]} |" in text
    assert "| sft | sft | missing | 0123456789abcdef | – | – | – |" in text
    assert "| fuse | close | 0.5 | <= 0.1 | accepted: far branches are the point | branches are near |" in text
    assert "| fuse | rows | 8 | >= 8 | passed | rows fit |" in text
    assert "| fuse | lost | – | >= 1 | failed | nothing is lost |" in text
    assert "| dump-llama | 64 | 1,000 | 101.5 |" in text
    assert "| distill-llama | 3.0000 | 0.5000 | twin-llama | 1.2500 | 2.50 |" in text
    assert "| distill-qwen | heldout_kl | 0.5 |" in text
    assert "| exercise_add |" in text.partition("Beside the published card")[2]


def test_a_run_that_made_nothing_has_a_report(store: Store, tmp_path: Path) -> None:
    steps = [("corpus", "corpus", "artifacts/corpus/corpus-0123456789abcdef", "missing")]
    text = write_report(store, steps, tmp_path / "report.md", "tiny").read_text()
    assert "| corpus | corpus | missing |" in text
    assert "No step has been judged yet." in text


def test_lineage_has_every_ancestor_once_and_inputs_first(store: Store, pipeline: dict[str, Artifact]) -> None:
    manifest = pipeline["evaluate"].manifest()
    assert manifest is not None
    labels = [each.manifest.label for each in ancestors(store, manifest.inputs.values())]
    assert len(labels) == len(set(labels))
    # The twin of the Llama branch was never evaluated.
    assert set(labels) == set(pipeline) - {"evaluate", "twin-llama"}
    for before, after in (("student", "corpus"), ("dump-llama", "distill-llama"), ("revert-llama", "fuse")):
        assert labels.index(before) < labels.index(after)


def test_a_group_is_beside_its_published_value_by_its_own_name() -> None:
    part = {"metric": "acc_norm", "value": 0.75, "stderr": 0.2, "n": 4}
    own = {"tasks": {"bbh_snarks": part}, "entries": {"leaderboard_bbh": {**part, "value": 0.5, "stderr": 0.1, "n": 8}}}
    results = {"candidate": "final", "models": {"final": own}}
    table = nearness_table(results, {"leaderboard_bbh": 0.25, "bbh_snarks": 0.75, "leaderboard_gpqa": 0.3})
    assert table.rows == (
        ("leaderboard_bbh", "0.5000 ± 0.1000", "0.2500", "+0.2500", "+2.5"),
        ("bbh_snarks", "0.7500 ± 0.2000", "0.7500", "+0.0000", "+0.0"),
        ("leaderboard_gpqa", "–", "0.3000", "–", "–"),
    )


def test_a_pipe_in_a_cell_does_not_break_the_table() -> None:
    assert Table(("a",), (("x|y",),)).markdown().splitlines()[2] == "| x\\|y |"


def test_the_report_loads_nothing_heavy() -> None:
    code = (
        "import sys, tasks.publish.report; print([m for m in ('torch', 'prefect', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
