"""Where rows and seeds come from: the hub, a local file, a file inside a Python package, or the profile itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import file_sha256
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.packaged import packaged_file
from tasks.artifacts.pinned import Pinned


class HubRows(Frozen):
    """Rows of a data set on the Hugging Face hub, at one commit."""

    origin: Literal["hub"] = "hub"
    dataset: str
    subset: str | None = None
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """A full commit hash: a branch or a tag may move."""
    split: str = "train"
    messages_field: str = "conversations"


class FileRows(Pinned):
    """Rows of a local file, identified by its content."""

    origin: Literal["file"] = "file"
    path: str
    format: Literal["json", "parquet"] = "json"
    """`json` is an array of objects or one object a line."""
    messages_field: str = "conversations"

    def local_file(self) -> Path:
        """The file.

        Raises:
            BadInputError: it does not exist.
        """
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise BadInputError(f"the instruction file {self.path} does not exist; correct `path` in evolve.recipe")
        return path

    def with_identity(self) -> Self:
        """Itself with the content hash of the file as it is now. Raises BadInputError."""
        return self.pinned(file_sha256(self.local_file()), self.path, "evolve.recipe")


class PackageRows(Pinned):
    """Rows of a file inside an installed Python package, identified by its content."""

    origin: Literal["package"]
    package: str
    """Import name, such as zaragoza_construction_faq."""
    file: str
    """Path or glob inside the package; it must match one file."""
    format: Literal["json", "parquet"] = "json"
    messages_field: str = "conversations"

    @property
    def path(self) -> str:
        """What errors call it."""
        return f"{self.package}/{self.file}"

    def local_file(self) -> Path:
        """The file.

        Raises:
            BadInputError: the package is not installed, or not exactly one file matches.
        """
        return packaged_file(self.package, self.file, "`file` in evolve.recipe.source")

    def with_identity(self) -> Self:
        """Itself with the content hash of the file as it is now. Raises BadInputError."""
        return self.pinned(file_sha256(self.local_file()), self.path, "evolve.recipe")


class InlineRows(Frozen):
    """Seed instructions written in the profile."""

    origin: Literal["inline"] = "inline"
    instructions: tuple[str, ...] = Field(min_length=1)


StoredRows = HubRows | FileRows | PackageRows
Conversations = Annotated[StoredRows, Field(discriminator="origin")]
Seeds = Annotated[StoredRows | InlineRows, Field(discriminator="origin")]
