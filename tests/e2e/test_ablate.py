"""`medius ablate` after a run of the same profile: what it reuses, prints, writes, and leaves alone."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.ablation_grid import fusion_candidates
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.runs import all_runs
from tasks.artifacts.store import open_store
from tests.e2e.micro_run import MEDIUS, MicroRun, environment

# Two strategies, of which the run has made one, and few sums: a minute of CPU is enough for the command's whole way.
GRID = "ablations: {reversion: [original_rows, shared_trained], compare: {num_arithmetic: 20}}\n"
FUSIONS = """ablations:
  compare: {num_arithmetic: 20}
  fusion:
    - {merge_method: linear, base_model: null, weights: [[0.5, 0.5]]}
    - {merge_method: karcher, base_model: null}
"""


@dataclass(frozen=True)
class Ablation:
    """What the command printed, and the stages that it made."""

    stdout: str
    made: set[str]

    @property
    def chosen(self) -> str:
        """The sentence that begins with the choice."""
        line = next(line for line in self.stdout.splitlines() if line.startswith("Chosen: "))
        return line.removeprefix("Chosen: ")


def ablated(run: MicroRun, decision: str, profile: str) -> Ablation:
    """What the command did, which leaves the run's own artifacts and verdicts alone, and a report with a picture."""
    before, verdicts = run.digests(), run.verdicts()
    result = subprocess.run(
        [MEDIUS, "ablate", decision, profile, "--store", run.store],
        cwd=run.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = run.folder / result.stdout.splitlines()[-1]
    assert (report.parent.name, report.name) == (f"micro-{decision}", "report.md")
    assert {file.name for file in report.parent.iterdir()} == {"report.md", "results.png", "results.svg"}
    assert run.digests() == before, "the run's own artifacts are as they were"
    assert run.verdicts() == verdicts
    return Ablation(result.stdout, {line.split()[0] for line in result.stderr.splitlines() if " done in " in line})


def newest_record(run: MicroRun) -> str:
    """The name under which the last run stands in the store."""
    return all_runs(open_store(run.store))[-1].profile


@pytest.mark.slow
def test_reversion_is_compared_on_what_the_run_has_made(undisturbed: MicroRun, tmp_path: Path) -> None:
    profile = tmp_path / "micro.yaml"
    text = (CONFIGS / "micro.yaml").read_text() + GRID
    profile.write_text(text)
    judged = undisturbed.verdicts()["revert-llama"]
    assert judged is not None
    assert judged.gates, "the candidate that the profile will have is judged by the run"
    ablation = ablated(undisturbed, "reversion", str(profile))
    assert ablation.made == {"revert-llama-shared_trained", "compare-reversion-llama"}, "the run has made all else"
    for name in ("original", "trained", "original_rows", "shared_trained"):
        assert f"│ {name} " in ablation.stdout
    chosen = ablation.chosen.split(".")[0]
    revert = load_profile(str(profile)).branches["llama"].revert
    assert revert is not None
    assert revert.recipe.strategy == chosen
    assert (profile.read_text() == text) is (chosen == "original_rows")
    assert newest_record(undisturbed) == "micro-ablate-reversion", "an ablation is no run of the recipe"


@pytest.mark.slow
def test_fusions_of_the_branches_of_the_run_are_compared(undisturbed: MicroRun, tmp_path: Path) -> None:
    profile = tmp_path / "micro.yaml"
    text = (CONFIGS / "micro.yaml").read_text() + FUSIONS
    profile.write_text(text)
    loaded = load_profile(str(profile))
    candidates = fusion_candidates(loaded.fusion.fuse.recipe, loaded.ablations.fusion)
    assert list(candidates) == ["profile", "linear-0.5-0.5", "karcher"]
    ablation = ablated(undisturbed, "fusion", str(profile))
    assert ablation.made == {"fuse-linear-0.5-0.5", "fuse-karcher", "compare-fusion"}, "the run has made all else"
    for name in ("base", "branch-llama", "branch-qwen", *candidates):
        assert f"│ {name} " in ablation.stdout
    name = next(name for name in candidates if ablation.chosen.startswith(f"{name}."))
    assert load_profile(str(profile)).fusion.fuse.recipe == candidates[name]
    assert (profile.read_text() == text) is (name == "profile")
    assert newest_record(undisturbed) == "micro-ablate-fusion"


@pytest.mark.slow
def test_the_arms_of_the_recipe_share_what_the_run_has_made(undisturbed: MicroRun) -> None:
    first, again = (ablated(undisturbed, "recipe", "micro") for _ in range(2))
    tuned = {"sft-twins", "sft-llama-alone", "sft-qwen-alone"}
    alone = {"distill-llama-alone", "revert-llama-alone", "distill-qwen-alone"}
    own = {"twin-llama", "twin-qwen", "revert-twin-llama", "fuse-twins", *alone, *tuned, "evaluate-arms"}
    assert [first.made, again.made] == [own, set()], "the run has made all else, and nothing is made twice"
    assert first.stdout == again.stdout
    lines = first.stdout.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    arms = [
        "base", "ce-only", "ce-only-sft", "llama-alone", "llama-alone-sft", "qwen-alone", "qwen-alone-sft", "all",
        "all-sft",
    ]  # fmt: skip
    assert [row[0] for row in cells if row[0]] == [*arms, *arms[:-1]], "a table of the arms, and one of differences"
    assert any(line.startswith("ce-only-sft: twin-llama + twin-qwen + sft-twins") for line in lines)
