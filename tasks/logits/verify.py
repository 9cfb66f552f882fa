"""Reads a whole logit store and names everything that is wrong with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import MediusError
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.artifacts.verify import find_damage
from tasks.logits.codec import MASS_TOLERANCE, Positions, codec_of, mass
from tasks.logits.reader import LogitReader, ShardReader
from tasks.logits.rows import row_id_of
from tasks.logits.schema import LogitFormat, LogitSchema, ShardEntry, ShardPlan, plan_shards


def verify(store: Store, directory: str, manifest: Manifest) -> list[str]:
    """One sentence for each problem; empty if all is well.

    Checks the objects' checksums, the plan against the shards, and in each shard the offsets, the row ids, the order,
    the mass and the range of every position.
    """
    problems = find_damage(Artifact(store, directory), manifest)
    try:
        reader = LogitReader(store, directory, manifest)
    except (MediusError, ValidationError) as error:
        return [*problems, f"{store.locate(directory)}: the schema cannot be read ({error})"]
    problems += _gaps(reader.schema)
    for entry in reader.schema.shards:
        try:
            problems += [f"{reader.uri}: shard {entry.name} {fault}" for fault in _shard_faults(reader, entry)]
        except (MediusError, ValueError, KeyError, OSError) as error:
            problems.append(f"{reader.uri}: shard {entry.name} cannot be read ({error})")
    return problems


def _gaps(schema: LogitSchema) -> list[str]:
    """Rows of the plan that no shard has, and shards that the plan does not have."""
    planned = {plan.name: plan for plan in plan_shards(schema.num_rows, schema.rows_per_shard)}
    listed = {
        entry.name: ShardPlan(name=entry.name, split=entry.split, first_row=entry.first_row, num_rows=entry.num_rows)
        for entry in schema.shards
    }
    problems = []
    for name, plan in planned.items():
        if listed.get(name) != plan:
            last = plan.first_row + plan.num_rows - 1
            problems.append(
                f"rows {plan.first_row} to {last} of split {plan.split} are missing: no shard {name} has them"
            )
    return problems + [f"shard {name} is not in the plan" for name in listed if name not in planned]


def _shard_faults(reader: LogitReader, entry: ShardEntry) -> list[str]:
    shard = reader.shard(entry.name)
    header = shard.header
    form = set(LogitFormat.model_fields)
    if header.model_dump(include=form) != reader.schema.model_dump(include=form):
        return ["has another format than logits.json says"]
    listed = (entry.split, entry.first_row, entry.num_rows, entry.num_tokens, entry.num_targets)
    if (header.split, header.first_row, header.num_rows, header.num_tokens, header.num_targets) != listed:
        return ["has other rows than logits.json says"]
    offsets = shard.offsets
    if len(offsets) != header.num_rows + 1 or offsets[0] != 0 or offsets[-1] != header.num_tokens:
        return [f"has offsets that do not span its {header.num_rows} rows of {header.num_tokens} tokens"]
    if (np.diff(offsets) < 1).any() or len(shard.row_ids) != header.num_rows:
        return ["has a row without tokens or without an id"]
    faults = []
    for index in range(header.num_rows):
        faults += [f"row {header.first_row + index} {fault}" for fault in _row_faults(shard, index)]
    return faults


def _row_faults(shard: ShardReader, index: int) -> list[str]:
    row = shard.row(index)
    faults = []
    if row_id_of(row.input_ids) != row.row_id:
        faults.append(f"has other tokens than its id {row.row_id} says")
    if row.input_ids.max() >= shard.header.vocab_size:
        faults.append("has a token outside the vocabulary")
    if row.loss_mask.max() > 1 or row.loss_mask[0] or int(row.loss_mask.sum()) != shard.num_targets[index]:
        faults.append("has a loss mask that does not fit its number of targets")
    start = int(shard.offsets[index]) - index
    positions = shard.positions(start, start + len(row.input_ids) - 1)
    for fault, at_P in _position_faults(positions, row.input_ids[1:], shard.header).items():
        if at_P.any():
            faults.append(f"{fault} at position {int(np.argmax(at_P))}")
    return faults


def _position_faults(
    positions: Positions, gold_P: npt.NDArray[np.int32], form: LogitFormat
) -> dict[str, npt.NDArray[np.bool_]]:
    """Each fault that a position can have, and where it is."""
    ids_PK, values_PK = positions.topk_ids_PK, positions.topk_logprobs_PK
    kept_PK = ids_PK >= 0
    sorted_PK = np.sort(ids_PK, axis=1)
    repeated_PK = (sorted_PK[:, 1:] == sorted_PK[:, :-1]) & (sorted_PK[:, 1:] >= 0)
    gold_kept_PK = ids_PK == gold_P[:, None]
    bound_P = codec_of(form).error_bound(positions.gold_logprob_P)
    with np.errstate(invalid="ignore"):
        gold_differs_PK = gold_kept_PK & ~(np.abs(values_PK - positions.gold_logprob_P[:, None]) <= bound_P[:, None])
        outside_P = ~gold_kept_PK.any(1) & (positions.gold_logprob_P > positions.tail_logprob_P + 1e-4)
    return {
        "holds a number that is not one": np.isnan(values_PK).any(1)
        | np.isnan(positions.tail_logprob_P)
        | np.isnan(positions.gold_logprob_P),
        "has an id outside the vocabulary": (ids_PK >= form.vocab_size).any(1),
        "has an id twice": repeated_PK.any(1),
        "has an id without probability or a probability without id": (kept_PK == np.isneginf(values_PK)).any(1),
        "is not in descending order": (values_PK[:, 1:] > values_PK[:, :-1]).any(1),
        "has more mass than one": mass(values_PK, positions.tail_logprob_P) > 1 + MASS_TOLERANCE,
        "has a kept gold token with another probability": gold_differs_PK.any(1),
        "has a gold token outside the kept ones that is likelier than all of these": outside_P,
    }
