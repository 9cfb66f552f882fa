import subprocess
import sys

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.publish.lineage import ancestors
from tasks.publish.report import kl_by_model, read_results
from tasks.publish.tables import Table, headline, results_rows


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


def test_lineage_has_every_ancestor_once_and_inputs_first(store: Store, pipeline: dict[str, Artifact]) -> None:
    manifest = pipeline["evaluate"].manifest()
    assert manifest is not None
    labels = [each.manifest.label for each in ancestors(store, manifest.inputs.values())]
    assert len(labels) == len(set(labels))
    # The twin of the Llama branch was never evaluated.
    assert set(labels) == set(pipeline) - {"evaluate", "twin-llama"}
    for before, after in (("student", "corpus"), ("dump-llama", "distill-llama"), ("revert-llama", "fuse")):
        assert labels.index(before) < labels.index(after)


def test_what_is_in_a_cell_stays_in_it() -> None:
    assert Table(("a",), (("x|y",),)).markdown().splitlines()[2] == "| x\\|y |"
    lines = Table(("a",), (("<script>\nalert(1)</script> 1 < 2 <|im_end|>",),)).markdown().splitlines()
    assert lines[2:] == ["| \\<script> alert(1)\\</script> 1 < 2 <\\|im_end\\|> |"]


def test_the_report_loads_nothing_heavy() -> None:
    code = (
        "import sys, tasks.publish.report; print([m for m in ('torch', 'prefect', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
