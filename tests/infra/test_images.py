"""infra/Dockerfile without Docker: linted, its locks compared with pyproject.toml, its steps run as plain commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from flows.stack import CHECKOUT

INFRA = CHECKOUT / "infra"
TARGETS = ("orchestrator", "worker")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EXTRAS = {"orchestrator": ("kubernetes",), "worker": ("worker", "kubernetes", "smollm2")}
HEAVY = {"torch", "transformers", "deepspeed", "triton", "mergekit", "lm-eval", "datasets", "zarr"}


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's instructions by target, those of `base` first."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE))
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            found[name] = list(found.get(parent, ()))
        else:
            found[name].append((word, rest.strip()))
    return found


def pins(file: Path) -> dict[str, Version]:
    """Versions by package."""
    lines = re.findall(r"^([A-Za-z0-9][\w.-]*)(?:\[.*\])?==([^\s;\\]+)", file.read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in lines}


def requirements(target: str) -> Iterator[Requirement]:
    """What pyproject.toml wants in an image."""
    for extra in ((), *EXTRAS[target]):
        texts = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
        yield from map(Requirement, texts)


def lint(text: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "hadolint", "--failure-threshold", "style", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True)


def test_the_dockerfile_is_clean() -> None:
    done = lint((INFRA / "Dockerfile").read_text())
    assert done.returncode == 0, done.stdout
    assert lint("FROM python\nRUN sudo apt-get install x\n").returncode == 1


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_nobodys_root_and_installs_nothing_without_a_hash(target: str) -> None:
    instructions = stages()[target]
    assert [rest for word, rest in instructions if word == "USER"] == ["1000:1000"]
    installs = [rest for word, rest in instructions if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    # Whole closures: pip takes the extra in a dependency on sqlalchemy[asyncio] for something that is not locked.
    assert f"--no-deps --require-hashes --requirement infra/locks/{target}.txt" in installs[0]
    assert "--no-deps" in installs[1]


@pytest.mark.parametrize("target", TARGETS)
def test_a_lock_holds_what_the_project_wants_in_the_versions_that_were_measured(target: str) -> None:
    locked, measured = pins(INFRA / "locks" / f"{target}.txt"), pins(INFRA / "constraints.txt")
    for requirement in requirements(target):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not locked: run infra/locks/rewrite.sh"
        assert requirement.specifier.contains(locked[name]), f"{requirement}: run infra/locks/rewrite.sh"
    other = {name: measured[name] for name, version in locked.items() if measured.get(name, version) != version}
    assert not other, f"{other}: run infra/locks/rewrite.sh"


@pytest.mark.parametrize("target", TARGETS)
def test_every_line_of_a_lock_has_hashes(target: str) -> None:
    file = INFRA / "locks" / f"{target}.txt"
    entries = re.split(r"^(?=\S)", file.read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(file))
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_orchestrator_is_slim() -> None:
    locked = pins(INFRA / "locks" / "orchestrator.txt").keys()
    assert not locked & HEAVY
    assert not {name for name in locked if name.startswith("nvidia-")}
    assert pins(INFRA / "locks" / "worker.txt").keys() >= HEAVY


def test_compose_builds_a_target_that_there_is() -> None:
    targets = re.findall(r"^ +target: (\w+)", (INFRA / "compose.yaml").read_text(), flags=re.MULTILINE)
    assert targets
    assert set(targets) <= set(stages())


@pytest.mark.slow
def test_the_orchestrators_steps_make_an_installation_that_plans_and_shows_without_torch(tmp_path: Path) -> None:
    checkout, run, environment = tmp_path / "checkout", tmp_path / "run", tmp_path / "venv"
    run.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    variables = {**os.environ, "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for name in ("PYTHONPATH", "MEDIUS_STORE", "PREFECT_API_URL"):
        variables.pop(name, None)
    for word, rest in stages()["orchestrator"]:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = checkout / target / source if target == "./" else checkout / target
                place.parent.mkdir(parents=True, exist_ok=True)
                if (CHECKOUT / source).is_dir():
                    shutil.copytree(CHECKOUT / source, place, dirs_exist_ok=True)
                else:
                    shutil.copy(CHECKOUT / source, place)
        elif word == "RUN" and "pip install" in rest:
            subprocess.run(rest, shell=True, check=True, cwd=checkout, env=variables)

    def medius(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [environment / "bin" / "medius", *arguments, "--store", str(tmp_path / "store")]
        return subprocess.run(command, capture_output=True, text=True, cwd=run, env=variables, timeout=300)

    subprocess.run([environment / "bin" / "pip", "check"], check=True)
    installed = subprocess.run([environment / "bin" / "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not {canonicalize_name(line.split()[0]) for line in installed.splitlines()} & HEAVY
    for arguments in (("plan", "medius"), ("plan", "medius", "--cost"), ("status", "medius")):
        done = medius(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "logits-llama" in done.stdout
    # Without a pool that has it, no stage can be made here, and one sentence says so.
    done = medius("run", "micro")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "this installation has no torch" in done.stdout + done.stderr
