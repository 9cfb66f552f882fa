"""The house holds: imports go down only, few modules know Prefect, and importing the flow loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = sorted(path.parent.name for path in (ROOT / "tasks").glob("*/stage.py"))
LIBRARIES = {"artifacts", "worker", "runtime", "logits", "training", "modeling", "planning", "exercises", "benchmarks"}

# What a library may import of tasks.*; a stage folder adds only itself.
ALLOWED = {
    "artifacts": {"artifacts"},
    "worker": {"worker", "artifacts"},
    "runtime": {"runtime", "worker", "artifacts"},
    "exercises": {"exercises", "artifacts"},
    "benchmarks": {"benchmarks", "exercises", "artifacts"},
    "modeling": {"modeling", "artifacts"},
    "planning": {"planning", "artifacts"},
    "logits": {"logits", "artifacts"},
    "training": {"training", "logits", "modeling", "planning", "worker", "artifacts", "runtime"},
}


def modules() -> list[Path]:
    return sorted([*(ROOT / "tasks").rglob("*.py"), *(ROOT / "flows").rglob("*.py")])


def imports(path: Path) -> set[str]:
    """Every dotted module a file names in an import, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(path: Path) -> None:
    relative = path.relative_to(ROOT)
    names = imports(path)
    if relative.parts[0] == "flows":
        heavy = {"torch", "transformers", "deepspeed", "s3fs", "zarr", "datasets", "mergekit"}
        assert not {name.split(".")[0] for name in names} & heavy, "flows/ wires; heavy libraries belong to workers"
        return
    if relative.parent.name == "tasks":
        return
    home = relative.parts[1]
    used = {name.split(".")[1] for name in names if name.startswith("tasks.")}
    assert not any(name.split(".")[0] == "flows" for name in names)
    if home in ALLOWED:
        assert used <= ALLOWED[home]
    else:
        assert used <= LIBRARIES | {home}, "a stage folder never imports another stage's"
    if home != "runtime":
        assert not any(name.split(".")[0] == "prefect" for name in names), "only flows/ and tasks/runtime/ know Prefect"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_declaration_and_a_worker(stage: str) -> None:
    assert (ROOT / "tasks" / stage / "worker.py").is_file()
    # The recipe's stages are in dag.py; a comparison outside the recipe has its own wiring.
    wired = [path.read_text() for path in (ROOT / "flows").glob("*.py")]
    assert any(f"from tasks.{stage}.stage import STAGE" in text for text in wired)


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_the_flow_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "deepspeed", "datasets", "mergekit", "zarr", "lm_eval"}
    assert not loaded_after("import flows.pipeline, flows.cli") & heavy


def test_a_worker_knows_no_prefect() -> None:
    assert "prefect" not in loaded_after("import tasks.worker.job, tasks.runtime.declare")


def test_every_folder_of_the_tree_is_one_of_the_fixed_ones() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    top = {name.split("/")[0] for name in tracked if "/" in name}
    assert {name for name in top if not name.startswith(".")} <= {"flows", "tasks", "infra", "configs", "tests"}
