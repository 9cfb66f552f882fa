"""`medius ablate` after a run of the same profile: what it reuses, prints, writes, and leaves alone."""

from __future__ import annotations

import subprocess
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


@pytest.mark.slow
def test_reversion_is_compared_on_what_the_run_has_made(undisturbed: MicroRun, tmp_path: Path) -> None:
    profile = tmp_path / "micro.yaml"
    text = (CONFIGS / "micro.yaml").read_text() + GRID
    profile.write_text(text)
    before, verdicts = undisturbed.digests(), undisturbed.verdicts()
    result = subprocess.run(
        [MEDIUS, "ablate", "reversion", str(profile), "--store", undisturbed.store],
        cwd=undisturbed.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    made = {line.split()[0] for line in result.stderr.splitlines() if " done in " in line}
    assert made == {"revert-llama-shared_trained", "compare-reversion-llama"}, "all else was made by the run"
    for name in ("original", "trained", "original_rows", "shared_trained"):
        assert f"│ {name} " in result.stdout
    report = undisturbed.folder / result.stdout.splitlines()[-1]
    assert report.name == "report.md"
    assert {file.name for file in report.parent.iterdir()} == {"report.md", "results.png", "results.svg"}
    chosen = next(line for line in result.stdout.splitlines() if line.startswith("Chosen: "))
    name = chosen.removeprefix("Chosen: ").split(".")[0]
    assert profile.read_text() == text.replace("strategy: original_rows", f"strategy: {name}")

    assert undisturbed.digests() == before, "the run's own artifacts are as they were"
    judged = verdicts["revert-llama"]
    assert judged is not None
    assert judged.gates, "the candidate that the profile has now was judged by the run"
    assert undisturbed.verdicts() == verdicts
    record = all_runs(open_store(undisturbed.store))[-1]
    assert record.profile == "micro-ablate-reversion", "an ablation is no run of the recipe"


@pytest.mark.slow
def test_fusions_of_the_branches_of_the_run_are_compared(undisturbed: MicroRun, tmp_path: Path) -> None:
    profile = tmp_path / "micro.yaml"
    text = (CONFIGS / "micro.yaml").read_text() + FUSIONS
    profile.write_text(text)
    loaded = load_profile(str(profile))
    candidates = fusion_candidates(loaded.fusion.fuse.recipe, loaded.ablations.fusion)
    assert list(candidates) == ["profile", "linear-0.5-0.5", "karcher"]
    before, verdicts = undisturbed.digests(), undisturbed.verdicts()
    result = subprocess.run(
        [MEDIUS, "ablate", "fusion", str(profile), "--store", undisturbed.store],
        cwd=undisturbed.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    made = {line.split()[0] for line in result.stderr.splitlines() if " done in " in line}
    assert made == {"fuse-linear-0.5-0.5", "fuse-karcher", "compare-fusion"}, "all else was made by the run"
    for name in ("base", "branch-llama", "branch-qwen", *candidates):
        assert f"│ {name} " in result.stdout
    report = undisturbed.folder / result.stdout.splitlines()[-1]
    assert report.name == "report.md"
    assert {file.name for file in report.parent.iterdir()} == {"report.md", "results.png", "results.svg"}
    chosen = next(line for line in result.stdout.splitlines() if line.startswith("Chosen: "))
    name = next(name for name in candidates if chosen.removeprefix("Chosen: ").startswith(f"{name}."))
    assert load_profile(str(profile)).fusion.fuse.recipe == candidates[name]
    assert (profile.read_text() == text) is (name == "profile")

    assert undisturbed.digests() == before, "the run's own artifacts are as they were"
    assert undisturbed.verdicts() == verdicts
    assert all_runs(open_store(undisturbed.store))[-1].profile == "micro-ablate-fusion"


@pytest.mark.slow
def test_the_arms_of_the_recipe_share_what_the_run_has_made(undisturbed: MicroRun) -> None:
    before, verdicts = undisturbed.digests(), undisturbed.verdicts()
    said = []
    for _ in range(2):
        result = subprocess.run(
            [MEDIUS, "ablate", "recipe", "micro", "--store", undisturbed.store],
            cwd=undisturbed.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        said.append((result.stdout, {line.split()[0] for line in result.stderr.splitlines() if " done in " in line}))
    tuned = {"sft-twins", "sft-llama-alone", "sft-qwen-alone"}
    own = {"twin-llama", "twin-qwen", "revert-twin-llama", "fuse-twins", *tuned, "evaluate-arms"}
    assert [made for _, made in said] == [own, set()], "all else was made by the run, and nothing is made twice"
    assert said[0][0] == said[1][0]
    lines = said[0][0].splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    arms = [
        "base", "ce-only", "ce-only-sft", "llama-alone", "llama-alone-sft", "qwen-alone", "qwen-alone-sft", "all",
        "all-sft",
    ]  # fmt: skip
    assert [row[0] for row in cells if row[0]] == [*arms, *arms[:-1]], "a table of the arms, and one of differences"
    assert any(line.startswith("ce-only-sft: twin-llama + twin-qwen + sft-twins") for line in lines)
    report = undisturbed.folder / lines[-1]
    assert report.parent.name == "micro-recipe"
    assert {file.name for file in report.parent.iterdir()} == {"report.md", "results.png", "results.svg"}
    assert undisturbed.digests() == before, "the run's own artifacts are as they were"
    assert undisturbed.verdicts() == verdicts
