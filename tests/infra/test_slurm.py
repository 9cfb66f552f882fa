"""infra/slurm/medius.sbatch: linted, and its body run on this machine with the variables that Slurm sets.

Slurm is not here: `scontrol` names the hosts of an allocation, and `srun` starts a command as many times as it is told,
on this host.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.stack import CHECKOUT
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import open_store

SBATCH = CHECKOUT / "infra" / "slurm" / "medius.sbatch"
SCRIPTS = sorted(path for path in (CHECKOUT / "infra").rglob("*") if path.suffix in {".sh", ".sbatch"})
BIN = Path(sys.executable).parent
SRUN = """#!/bin/bash
for word in "$@"; do case "$word" in
  --nodes=*) nodes=${word#--nodes=}; shift ;;
  --*) shift ;;
  *) break ;;
esac; done
code=0
for _ in $(seq "$nodes"); do "$@" & processes+=($!); done
for process in "${processes[@]}"; do wait "$process" || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
case "$1" in
  show) printf 'localhost\\nnode-b\\n' ;;
  requeue) echo "$2" > "$REQUEUED" ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An allocation of two nodes with one process each; returns the file that a requeue writes."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("REQUEUED", str(tmp_path / "requeued"))
    settings = {"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "localhost,node-b",
                "SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_ON_NODE": "2", "MEDIUS_BIN": str(BIN / "medius"),
                "MEDIUS_STORE": str(tmp_path / "store"), "MEDIUS_LOCAL_DISK": str(tmp_path / "local"),
                "MEDIUS_OVER_NODES": "fine_tuning.sft"}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_XET_CACHE", "MEDIUS_INPUT_CACHE", "MEDIUS_LOCAL_GB", "SLURM_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "requeued"


def sbatch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SBATCH), *arguments], capture_output=True, text=True, cwd=CHECKOUT, timeout=550)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_clean(script: Path) -> None:
    done = subprocess.run([BIN / "shellcheck", "--shell=bash", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


def test_there_are_scripts_to_lint() -> None:
    assert SBATCH in SCRIPTS


def test_the_directives_are_ones_that_sbatch_knows() -> None:
    directives = re.findall(r"^#SBATCH --([\w-]+)", SBATCH.read_text(), flags=re.MULTILINE)
    wanted = {"nodes", "ntasks-per-node", "gpus-per-node", "exclusive", "mem", "signal", "requeue", "open-mode"}
    assert wanted <= set(directives)
    signalled = re.search(r"--signal=B:USR1@(\d+)", SBATCH.read_text())
    assert signalled is not None
    profile = yaml.safe_load((CHECKOUT / "configs" / "medius.yaml").read_text())
    assert int(signalled[1]) > profile["fine_tuning"]["sft"]["runtime"]["stop_grace_seconds"]


def test_an_allocation_becomes_a_launch_that_the_profile_takes(slurm: Path) -> None:
    done = sbatch("plan", "micro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sft" in done.stdout


def test_the_dumps_are_what_is_spread_over_nodes(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDIUS_OVER_NODES")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    monkeypatch.setenv("COLUMNS", "170")
    done = sbatch("plan", "medius", "--cost", "--nodes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│")]
    rows = {cells[1].strip(): cells[4].strip() for cells in table}
    assert {label for label, devices in rows.items() if devices == "2 × 8 h100-sxm"} == {"logits-llama", "logits-qwen"}
    assert rows["distill-qwen"] == "8 h100-sxm"
    assert "WARNING" not in done.stdout


def test_an_allocation_of_one_node_leaves_the_profile_as_it_is(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A rendezvous with num_nodes 1 is refused, so this passes only if nothing is set.
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    done = sbatch("plan", "micro")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stage_that_the_profile_lacks_is_refused(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDIUS_OVER_NODES", "branches.none.distill")
    done = sbatch("plan", "micro")
    assert done.returncode == 2
    assert not slurm.exists()


@pytest.fixture
def told(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """told(): the environment that the script gives to a medius which writes it down."""
    program = tmp_path / "bin" / "medius"
    program.write_text('#!/bin/sh\nenv > "$TOLD"\n')
    program.chmod(0o755)
    monkeypatch.setenv("MEDIUS_BIN", str(program))
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))

    def environment() -> dict[str, str]:
        done = sbatch("run", "micro")
        assert done.returncode == 0, done.stderr
        return dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines() if "=" in line)

    return environment


def test_models_go_to_the_local_disk_and_the_login_stays(
    told: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = told()
    assert got["HF_HUB_CACHE"] == str(tmp_path / "local" / "hub")
    assert "HF_HOME" not in got
    # Whoever has filled a cache of his own for nodes without a way out wants that one.
    monkeypatch.setenv("HF_HOME", "/shared/hf")
    got = told()
    assert (got["HF_HOME"], got["HF_HUB_CACHE"]) == ("/shared/hf", "/shared/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/shared/models")
    assert told()["HF_HUB_CACHE"] == "/shared/models"


def test_the_jobs_own_folder_is_taken_where_none_is_named(
    told: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDIUS_LOCAL_DISK")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "job-17"))
    assert told()["MEDIUS_INPUT_CACHE"] == str(tmp_path / "job-17" / "inputs")


def test_a_local_disk_that_is_not_named_or_too_small_is_one_sentence(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDIUS_LOCAL_GB", "100000000")
    done = sbatch("plan", "micro")
    assert done.returncode == 2
    # Of each of the two nodes.
    said = [line for line in done.stderr.splitlines() if "MEDIUS_LOCAL_GB asks for 100000000" in line]
    assert len(said) == 2, done.stderr
    monkeypatch.delenv("MEDIUS_LOCAL_DISK")
    done = sbatch("plan", "micro")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "name a folder on each node's own disk in MEDIUS_LOCAL_DISK" in line


@pytest.mark.slow
def test_the_fine_tuning_of_micro_runs_over_two_nodes_of_an_allocation(slurm: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    done = sbatch("run", "micro", "--until", "sft")
    assert done.returncode == 0, done.stdout + done.stderr
    store = open_store(str(tmp_path / "store"))
    [folder] = {entry.path.split("/")[2] for entry in store.list("artifacts/sft")}
    manifest = Artifact(store, f"artifacts/sft/{folder}").manifest()
    assert manifest is not None
    assert manifest.metrics["world_size"] == 2


ASKED = """#!/bin/bash
trap 'exit 4' TERM
echo ready
while :; do sleep 0.05; done
"""
"""A run that can be gone on with where it is asked to stop."""


@pytest.mark.parametrize(
    ("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)], ids=["its time is over", "scancel"]
)
def test_a_job_comes_back_where_its_nodes_were_taken_and_not_where_it_was_cancelled(
    number: signal.Signals, requeued: bool, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "medius"
    program.write_text(ASKED)
    program.chmod(0o755)
    monkeypatch.setenv("MEDIUS_BIN", str(program))
    process = subprocess.Popen([str(SBATCH), "run", "micro"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(60) == 4
    assert slurm.exists() == requeued


@pytest.mark.slow
def test_a_signal_before_the_end_of_the_time_reaches_the_run_and_the_job_is_queued_again(
    slurm: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [str(SBATCH), "run", "micro"], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "corpus" in line:
            break
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=300)
    assert process.returncode == 4
    assert slurm.read_text() == "17\n"
