"""The tokenizers and configs of model sources without their weights: `python -m tasks.models.tokenizer_only REQUEST`.

REQUEST is a JSON list of {source, target}: the source block of a profile, and a folder for these files. For
plans that are shown before anything ran; from the hub only these small files are fetched.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import TypeAdapter

from tasks.artifacts.errors import BadInputError, MediusError
from tasks.modeling.hub import hub_snapshot
from tasks.modeling.tokenizer_files import TOKENIZER_FILES
from tasks.models.stage import DirectorySource, GgufSource, HubSource, MiniatureSource, ModelSource, TokenizerSource

FILES = (*TOKENIZER_FILES, "config.json", "generation_config.json")


def write_tokenizer(source: ModelSource, target: Path) -> None:
    """Puts the tokenizer files and configs of `source` into `target`, as its artifact will have them.

    A vocabulary without a model has no configs, and of a GGUF file none are read.

    Raises:
        BadInputError, TransientStoreError: they cannot be had.
    """
    target.mkdir(parents=True, exist_ok=True)
    match source:
        case HubSource():
            _link(hub_snapshot(source.repo, source.revision, FILES), target)
        case DirectorySource() | MiniatureSource():
            _link(source.directory(), target)
        case GgufSource():
            _unpack(source.path(), target)
        case TokenizerSource():
            from tasks.models.packaged_tokenizer import write_packaged_tokenizer

            write_packaged_tokenizer(source.path(), source, target)


def _link(directory: Path, target: Path) -> None:
    for name in FILES:
        if (directory / name).is_file():
            (target / name).symlink_to((directory / name).resolve())


def _unpack(file: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(target)
    except ImportError as error:
        raise BadInputError(f"reading {file.name} needs the package gguf; pip install -e '.[smollm2]'") from error


def main(request: Path) -> None:
    """Writes all tokenizers of a file of requests; ends with a code and a sentence at the first that cannot be had."""
    adapter: TypeAdapter[ModelSource] = TypeAdapter(ModelSource)
    try:
        for entry in json.loads(request.read_text(encoding="utf-8")):
            write_tokenizer(adapter.validate_python(entry["source"]), Path(entry["target"]))
    except MediusError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
