"""`medius ablate reversion` after a run of the same profile: what it reuses, prints, writes, and leaves alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flows.ablation_grid import STRATEGIES
from flows.profiles import CONFIGS
from tasks.artifacts.runs import last_run
from tasks.artifacts.store import open_store
from tests.e2e.micro_run import MEDIUS, MicroRun, environment


@pytest.mark.slow
def test_reversion_is_compared_on_what_the_run_has_made(undisturbed: MicroRun, tmp_path: Path) -> None:
    profile = tmp_path / "micro.yaml"
    # The corpus holds out seven texts.
    text = (CONFIGS / "micro.yaml").read_text().replace("max_documents: 8", "max_documents: 4")
    profile.write_text(text)
    before = undisturbed.digests()

    def ablate(*more: str) -> subprocess.CompletedProcess[str]:
        command = [MEDIUS, "ablate", "reversion", str(profile), "--store", undisturbed.store, *more]
        return subprocess.run(
            command, cwd=undisturbed.folder, env=environment(), capture_output=True, text=True, timeout=400, check=False
        )

    # The first shows the choice, the second finds all finished and writes it.
    shown, written = ablate("--no-write"), ablate()
    for result in (shown, written):
        assert result.returncode == 0, result.stderr
        for name in ("original", "trained", *STRATEGIES):
            assert f"│ {name} " in result.stdout
        report = undisturbed.folder / result.stdout.splitlines()[-1]
        assert report.name == "report.md"
        assert {file.name for file in report.parent.iterdir()} == {"report.md", "results.png", "results.svg"}
    chosen = next(line for line in shown.stdout.splitlines() if line.startswith("Chosen: "))
    name = chosen.removeprefix("Chosen: ").split(".")[0]
    assert profile.read_text() == text.replace("strategy: original_rows", f"strategy: {name}")
    assert "done in" not in written.stderr

    assert undisturbed.digests() == before, "the run's own artifacts are as they were"
    record = last_run(open_store(undisturbed.store), "micro")
    assert record is not None
    assert record.config["name"] == "micro", "an ablation is no run of the recipe"
