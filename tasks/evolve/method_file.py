"""An evolved method as the start of another search: a text file, or the method.txt of a finished artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, CorruptArtifactError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.pinned import Pinned
from tasks.artifacts.store import open_store

METHOD_FILE = "method.txt"
"""Its name in an artifact of `autoevol`."""
_SETTING = "evolve.recipe.source.method"


class MethodFile(Pinned):
    """A method by where it is; what counts for the key is its content, too."""

    path: str
    """Of a text file, or the URI of an artifact of `autoevol` (STORE/artifacts/evolve/LABEL-KEY, on disk or in S3)."""

    def text(self) -> str:
        """The method.

        Raises:
            BadInputError: there is none, or another one than `content_sha256` says.
        """
        data = self._read()
        self.pinned(sha256_hex(data), self.path, _SETTING)
        try:
            text = data.decode().strip()
        except UnicodeDecodeError as error:
            raise BadInputError(f"the method {self.path} is no UTF-8 text; correct {_SETTING}.path") from error
        if not text:
            raise BadInputError(f"the method {self.path} is empty; correct {_SETTING}.path")
        return text

    def with_identity(self) -> Self:
        """Itself with the sha256 of the method as it is now. Raises BadInputError."""
        return self.pinned(sha256_hex(self._read()), self.path, _SETTING)

    def _read(self) -> bytes:
        file = Path(self.path).expanduser()
        if file.is_file():
            return file.read_bytes()
        root, found, folder = self.path.rstrip("/").rpartition("/artifacts/")
        if not found:
            raise BadInputError(
                f"there is no file {self.path}, and it is no artifact's URI (STORE/artifacts/evolve/LABEL-KEY); "
                f"correct {_SETTING}.path"
            )
        artifact = Artifact(open_store(root), f"artifacts/{folder}")
        manifest = artifact.manifest()
        entry = None if manifest is None else manifest.object(METHOD_FILE)
        if entry is None:
            raise BadInputError(
                f"{self.path} is not there, is not finished, or was made without a method (source autoevol makes "
                f"one); correct {_SETTING}.path"
            )
        data = artifact.store.get(artifact.path(entry.path))
        if sha256_hex(data) != entry.sha256:
            raise CorruptArtifactError(f"{METHOD_FILE} of {self.path} is damaged; make that artifact again")
        return data
