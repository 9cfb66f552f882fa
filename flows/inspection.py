"""`medius inspect`: a logit store in words, in numbers, as one document's tokens and as a picture."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.addresses import hush_open_sessions, model_of
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, MediusError
from tasks.artifacts.manifest import Manifest
from tasks.logits.schema import SCHEMA_FILE, SPLITS, LogitSchema, Split

if TYPE_CHECKING:
    from tasks.logits.reader import LogitReader
    from tasks.logits.survey import Survey

NUM_SHOWN = 5
"""Likeliest tokens of a position."""
_CACHE_BYTES = 32 * 2**20
_NAMES = {"top_k": "the likeliest {num_kept}", "sampled": "{num_draws} draws (seed {seed})"}


def inspect_store(
    artifact: Artifact,
    manifest: Manifest,
    console: Console,
    *,
    split: str | None,
    row: int,
    document: str | None,
    positions: int,
    target: Path,
) -> None:
    """Prints what the store is, numbers of a sample and one document; draws the picture and prints its path last."""
    from tasks.logits.survey import find_row, survey

    hush_open_sessions()
    reader = _open(artifact, manifest)
    chosen = _split(reader, split)
    rows = reader.rows(chosen)
    index = find_row(reader, chosen, document) if document is not None else row
    if not 0 <= index < len(rows):
        raise BadInputError(f"split {chosen} of {reader.uri} has rows 0 to {len(rows) - 1}, not {index}")

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False)

    for line in _words(artifact, reader):
        say(line)
    found = survey(artifact, manifest, reader, chosen)
    for line in _numbers(found):
        say(line)
    _print_document(reader, chosen, index, positions, _texts(artifact, manifest, reader.schema, say), console, say)

    # Its font cache otherwise goes to the home directory.
    os.environ.setdefault("MPLCONFIGDIR", str(Path(".medius/matplotlib").resolve()))
    from tasks.logits.plots import plot

    folder = artifact.directory.rpartition("/")[2]
    file = target / f"{folder}-{chosen}.png"
    plot(found, f"{folder}: {_support(reader.schema)}, {reader.schema.vocab_size:,} tokens", file)
    console.print(str(file), soft_wrap=True, markup=False)


def _open(artifact: Artifact, manifest: Manifest) -> LogitReader:
    from tasks.logits.reader import LogitReader

    try:
        return LogitReader(artifact.store, artifact.directory, manifest, cache_bytes=_CACHE_BYTES)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(
            f"{artifact.uri}: {SCHEMA_FILE} is not of this version ({where}: {first['msg']}); run dump_logits again"
        ) from error


def _split(reader: LogitReader, split: str | None) -> Split:
    there: list[Split] = [name for name, count in reader.schema.num_rows.items() if count]
    for name in sorted(there, key=SPLITS.index):
        if split in {None, name}:
            return name
    raise BadInputError(f"{reader.uri} has no rows in split {split!r}, only in {', '.join(there)}")


def _support(schema: LogitSchema) -> str:
    support = schema.support
    if support.kind != "adaptive":
        return _NAMES[support.kind].format_map(support.model_dump())
    limits = []
    if support.min_probability is not None:
        limits.append(f"down to probability {support.min_probability:g}")
    if support.min_mass is not None:
        limits.append(f"up to mass {support.min_mass:g}")
    return f"the likeliest {' or '.join(limits)}, {support.min_kept} to {support.max_kept}"


def _words(artifact: Artifact, reader: LogitReader) -> list[str]:
    from tasks.logits.survey import entry_error

    schema, teacher = reader.schema, reader.schema.teacher
    name = teacher.repo or "a local model"
    details = ", ".join(part for part in (teacher.dtype, teacher.attention, teacher.quantisation) if part)
    values = {
        "warped": "on 255 levels, finer where the mass is",
        "float16": "as float16",
        "float32": "as float32",
    }[schema.values]
    likely, unlikely = entry_error(reader, 0.5), entry_error(reader, 0.01)
    temperatures = ", ".join(f"{value:g}" for value in (1.0, *schema.temperatures))
    tokens = {
        split: sum(every.num_tokens for every in schema.shards if every.split == split) for split in schema.num_rows
    }
    counts = [f"{split} {count:,} rows, {tokens[split]:,} tokens" for split, count in schema.num_rows.items() if count]
    return [
        artifact.uri,
        f"teacher     {name}{f' at {teacher.revision}' if teacher.revision else ''}, weights "
        f"{teacher.weights_digest[:16] or 'unknown'}{f', {details}' if details else ''}",
        f"tokenizer   {schema.tokenizer_digest[:16]}, {schema.vocab_size:,} tokens",
        f"corpus      {schema.corpus_digest[:16]}",
        f"support     {_support(schema)}; normalised over all tokens at temperature {temperatures}",
        f"values      {values}; an entry is rounded by at most {schema.max_error_nats:g} nats and, where "
        f"little is left out, off by at most {likely:.2g} at p = 0.5, {unlikely:.2g} at p = 0.01",
        f"rows        {'; '.join(counts)}; {len(schema.shards)} shards",
    ]


def _numbers(found: Survey) -> list[str]:
    from tasks.logits.survey import PERCENTILES

    if not len(found.captured_P):
        return [f"size        {found.bytes_per_token:.1f} bytes a token"]
    percentiles = ", ".join(
        f"p{number} {value:.4f}" for number, value in zip(PERCENTILES, found.percentiles(), strict=True)
    )
    entries = found.entries_P
    return [
        f"size        {found.num_bytes:,} bytes, {found.bytes_per_token:.1f} a token, everything counted",
        f"captured    {percentiles}, mean {found.captured_P.mean():.4f} (mass of a position's entries; "
        f"{len(found.captured_P):,} positions of {found.num_rows} rows)",
        f"entries     {entries.mean():.1f} a position, {entries.min()} to {entries.max()}",
    ]


def _texts(
    artifact: Artifact, manifest: Manifest, schema: LogitSchema, say: Callable[[str], None]
) -> Callable[[int], str]:
    """How a token is shown: as text, quoted, or as its id where there is no tokenizer; then `say` says why."""
    from tasks.modeling.tokenizer_files import TOKENIZER_FILES, load_tokenizer, tokenizer_digest

    try:
        model, files = model_of(artifact, manifest, ("teacher", "tokenizer"))
        with tempfile.TemporaryDirectory() as folder:
            objects = tuple(entry for entry in files.objects if entry.name in TOKENIZER_FILES)
            tokenizer = load_tokenizer(model.fetch(files.model_copy(update={"objects": objects}), Path(folder)))
        if tokenizer_digest(tokenizer) != schema.tokenizer_digest:
            raise BadInputError(f"the tokenizer of {model.uri} is another one")
    except MediusError as error:
        say(f"tokens are shown as ids: {error}")
        return str

    def text(token: int) -> str:
        piece = str(tokenizer.convert_ids_to_tokens([token])[0])
        decoded = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        # Part of a character is no text; and some decoders drop the space before a first word.
        if not decoded or "\ufffd" in decoded or piece.startswith("\u2581"):
            decoded = piece.replace("\u2581", " ")
        return repr(decoded)

    return text


def _print_document(
    reader: LogitReader,
    split: Split,
    index: int,
    positions: int,
    text: Callable[[int], str],
    console: Console,
    say: Callable[[str], None],
) -> None:
    row = reader.rows(split)[index]
    total = len(row.input_ids) - 1
    shown = min(positions, total)
    say(f"row {index} of split {split}, id {row.row_id}: {total + 1} tokens, {int(row.loss_mask.sum())} targets")
    if shown == 0:
        return
    table = Table(title=f"positions 0 to {shown - 1} of {total}", title_justify="left")
    for name in ("position", "token", "next", "log p", f"top {NUM_SHOWN}", "kept"):
        table.add_column(name, overflow="fold", justify="right" if name in {"position", "log p", "kept"} else "left")
    sampled = row.counts_PK.shape[1] > 0
    for at in range(shown):
        kept = int((row.topk_ids_PK[at] >= 0).sum())
        best = []
        for place in range(min(NUM_SHOWN, kept)):
            drawn = f" ×{row.counts_PK[at, place]}" if sampled else ""
            probability = math.exp(row.topk_logprobs_PK[at, place])
            best.append(f"{text(int(row.topk_ids_PK[at, place]))} {probability:.3f}{drawn}")
        mass = math.fsum(math.exp(value) for value in row.topk_logprobs_PK[at, :kept])
        # As Text, since tokens may look like markup.
        table.add_row(
            str(at),
            Text(text(int(row.input_ids[at]))),
            Text(text(int(row.input_ids[at + 1]))),
            f"{row.gold_logprob_P[at]:.3f}",
            Text("  ".join(best)),
            f"{mass:.4f} ({kept})",
        )
    console.print(table)
