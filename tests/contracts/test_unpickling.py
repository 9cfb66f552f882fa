"""Nothing that comes out of a store is unpickled or run, but a checkpoint's files, which are looked through first."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "tasks").rglob("*.py"), *(ROOT / "flows").rglob("*.py")])
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "pandas"}
"""Modules whose readers call what their input names; pandas for read_pickle."""
DEEPSPEED = {
    "load_checkpoint": {"tasks/training/engine.py"},
    "ds_to_universal": {"tasks/training/universal.py"},
}
"""What reads DeepSpeed's own files, and the modules that may, as they call refuse_foreign_pickles before."""


def faults(source: str, name: str = "x.py") -> list[str]:
    """What of a module's text could unpickle or run something."""
    return [f"{name}:{line}: {what}" for line, what in _faults(ast.parse(source), name)]


def _faults(tree: ast.AST, name: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            if any(alias.name in DEEPSPEED and name not in DEEPSPEED[alias.name] for alias in node.names):
                yield node.lineno, "reads DeepSpeed's files"
        if found := {module.split(".")[0] for module in modules} & UNPICKLERS:
            yield node.lineno, f"imports {', '.join(found)}"
        if isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _of_call(node, name))


def _of_call(node: ast.Call, name: str) -> Iterator[str]:
    called = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
    if called in {"torch.load", "torch.hub.load"} and given.get("weights_only") != "True":
        yield f"{called} without weights_only=True"
    for word, safe in {"allow_pickle": "False", "trust_remote_code": "False"}.items():
        if given.get(word, safe) != safe:
            yield f"{word}={given[word]}"
    reads_model = called.startswith("AutoModel") and called.endswith(".from_pretrained")
    # A GGUF file is no pickle, and has no tensors beside it.
    if reads_model and given.get("use_safetensors") != "True" and name != "tasks/models/gguf.py":
        yield f"{called} without use_safetensors=True"
    last = called.rpartition(".")[2]
    if last in DEEPSPEED and name not in DEEPSPEED[last]:
        yield f"calls {called}"
    if called in {"eval", "exec"}:
        yield f"calls {called}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unpickles(path: Path) -> None:
    assert faults(path.read_text(), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize("path", sorted(set().union(*DEEPSPEED.values())))
def test_what_reads_deepspeeds_files_looks_through_them_first(path: str) -> None:
    assert "refuse_foreign_pickles(directory)" in (ROOT / path).read_text()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "import torch; torch.load(p)", "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)", "AutoModel.from_pretrained(p, use_safetensors=True, trust_remote_code=True)",
        "AutoModelForCausalLM.from_pretrained(p)", "engine.load_checkpoint(p)", "eval(text)",
        "from deepspeed.checkpoint import ds_to_universal",
    ],
)  # fmt: skip
def test_a_new_use_would_be_found(line: str) -> None:
    assert len(faults(line)) == 1
