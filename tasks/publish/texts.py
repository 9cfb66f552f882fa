"""Texts that licences want to go along with a model: those that its sources came with, and which are missing."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import file_sha256
from tasks.artifacts.pinned import Pinned
from tasks.artifacts.store import Store
from tasks.modeling.legal_files import LEGAL_FILES
from tasks.publish.licenses import LICENSES, OWN
from tasks.publish.lineage import Ancestor
from tasks.publish.sources import LicensedSource, model_source

_PASSED_ON = {"student", "donor", "tokenizer"}
"""What of a model is in the published one. A teacher's outputs are not, but some licences follow those too."""


class TextFile(Pinned):
    """A licence's text in a file of this machine, for sources that come without it."""

    path: str

    def file(self) -> Path:
        """The file.

        Raises:
            BadInputError: there is none.
        """
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise BadInputError(f"there is no file {self.path}; correct publish.recipe.license_texts")
        return file

    def with_identity(self) -> TextFile:
        """With the file's sha256. Raises BadInputError."""
        return self.pinned(file_sha256(self.file()), self.path, "publish.recipe.license_texts")


@dataclass(frozen=True)
class Text:
    """One file that goes along."""

    name: str
    """In the published folder, such as LICENSE-llama3.1."""
    license: str
    origin: str
    """What a reader is told it was taken from."""
    data: bytes

    @property
    def is_license(self) -> bool:
        """Not a use policy, nor somebody's notice."""
        return self.name.startswith("LICENSE")


def texts_of(
    store: Store, lineage: Sequence[Ancestor], sources: Sequence[LicensedSource], given: Mapping[str, TextFile]
) -> list[Text]:
    """The texts of all licences in `sources`, equal ones once: those of the profile, and what the models came with.

    Raises:
        BadInputError: a file of the profile is gone or has changed.
    """
    found: dict[tuple[str, bytes], Text] = {}
    for license, origin, name, data in (*_given(given), *_carried(store, lineage, sources)):
        if (license, data) not in found:
            taken = {text.name for text in found.values()}
            found[license, data] = Text(_free_name(name, license, taken), license, origin, data)
    return list(found.values())


def _given(given: Mapping[str, TextFile]) -> Iterator[tuple[str, str, str, bytes]]:
    for license, text in sorted(given.items()):
        file = text.with_identity().file()
        yield license, "the publisher", f"LICENSE{file.suffix}", file.read_bytes()


def _carried(
    store: Store, lineage: Sequence[Ancestor], sources: Sequence[LicensedSource]
) -> Iterator[tuple[str, str, str, bytes]]:
    """License, origin, name and bytes of each such file of a model at the beginning of the lineage."""
    by_name = {source.name: source for source in sources if source.kind == "models" and source.license != OWN}
    for ancestor in lineage:
        manifest = ancestor.manifest
        if manifest.stage != "models":
            continue
        name = model_source(manifest.recipe["source"], "student", manifest.label).name
        if (source := by_name.get(name)) is not None:
            for entry in manifest.objects:
                if entry.name in LEGAL_FILES:
                    data = store.get(f"{ancestor.directory}/{entry.path}")
                    yield source.license, source.hub or source.card_name, entry.name, data


def _free_name(name: str, license: str, taken: Container[str]) -> str:
    """LICENSE.txt of llama3.1 is LICENSE-llama3.1.txt, and a second, different one LICENSE-llama3.1-2.txt."""
    stem, end = PurePath(name).stem, PurePath(name).suffix
    numbers = ("", *(f"-{number}" for number in range(2, 1000)))
    return next(f for number in numbers if (f := f"{stem}-{license}{number}{end}") not in taken)


def missing_texts(sources: Sequence[LicensedSource], there: Container[str]) -> dict[str, list[str]]:
    """By licence whose text has to go along and is not in `there`: what is under it."""
    missing: dict[str, list[str]] = {}
    for source in sources:
        terms = LICENSES[source.license]
        passed_on = source.kind == "models" and (terms.limits_use or source.parts & _PASSED_ON)
        if terms.wants_text and passed_on and source.license not in there:
            missing.setdefault(source.license, []).append(source.hub or source.card_name)
    return missing


def texts_lines(texts: Sequence[Text], missing: Mapping[str, Sequence[str]]) -> list[str]:
    """What is said of them, a sentence a file and a licence."""
    lines = [f"{text.name}: of {text.license}, as {text.origin} has it." for text in texts]
    for license, names in missing.items():
        lines.append(
            f"The text of the licence {license} ({', '.join(names)}) is not among these files. Whoever passes them on "
            f"must add it: {LICENSES[license].link}"
        )
    return lines


def check_public(missing: Mapping[str, Sequence[str]]) -> None:
    """Refuses to pass a model on without the text of a licence that binds whoever uses it.

    Raises:
        BadInputError: such a text is missing.
    """
    for license, names in missing.items():
        if LICENSES[license].limits_use:
            raise BadInputError(
                f"{names[0]} is under {license}, whose text must go to the hub with the model, and no source came with "
                f"it; save {LICENSES[license].link} as a file and name it in publish.recipe.license_texts: "
                f"{{{license}: {{path: FILE}}}}, or publish to the store or a directory"
            )
