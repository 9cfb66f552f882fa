"""Logits as plain parquet: one document of T tokens a row, with lists of its P positions.

    input_ids      list<int32>           T
    loss_mask      list<uint8>           T: 1 where a token is a target; without the column, all but the first
    token_ids      list<list<int32>>     P lists of kept ids, as many as a position keeps
    logprobs       list<list<float32>>   their natural log-probabilities
    tail_logprob   list<float32>         P: log of the mass outside; without the column, of what is missing to 1
    gold_logprob   list<float32>         P: of the token that follows
    counts         list<list<uint16>>    with sampled support, how often each id was drawn
    tempered_lse, tempered_tail          list<list<float32>>: P lists of M; only where temperatures were stored

P is T − 1, and position p predicts token p + 1. The first, third and fourth column must be there. An exported file also
says what its numbers mean in the schema's metadata, under `medius.logits` (`Head`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.import_logits.raw import Columns, Ragged, RawDocument
from tasks.logits.reader import LogitRow
from tasks.logits.schema import LogitSchema, Support, TeacherRecord

HEAD_KEY = b"medius.logits"
REQUIRED = ("input_ids", "token_ids", "logprobs")
OPTIONAL = ("loss_mask", "tail_logprob", "gold_logprob", "counts", "tempered_lse", "tempered_tail")


class Head(Frozen):
    """What an exported file says of its numbers."""

    version: int = 1
    support: Support
    vocab_size: int
    temperatures: tuple[float, ...] = ()
    tokenizer_digest: str
    teacher: TeacherRecord

    @classmethod
    def of_store(cls, schema: LogitSchema) -> Head:
        """The part of a store's schema that its rows do not say."""
        return cls(**schema.model_dump(include=set(cls.model_fields) - {"version"}))

    @classmethod
    def of_file(cls, schema: pa.Schema, where: str) -> Head | None:
        """What the file says; None if it is silent.

        Raises:
            BadInputError: it says something that is not understood.
        """
        data = (schema.metadata or {}).get(HEAD_KEY)
        if data is None:
            return None
        try:
            head = cls.model_validate_json(data)
        except ValidationError as error:
            raise BadInputError(
                f"{where}: its {HEAD_KEY.decode()} cannot be read ({error.errors()[0]['msg']}); export it again"
            ) from error
        if head.version != 1:
            raise BadInputError(f"{where} was exported in version {head.version}, this program reads 1; export again")
        return head


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


def file_schema(head: Head) -> pa.Schema:
    """Columns and metadata of an exported file."""
    columns = [
        ("input_ids", _list(pa.int32())),
        ("loss_mask", _list(pa.uint8())),
        ("token_ids", _list(_list(pa.int32()))),
        ("logprobs", _list(_list(pa.float32()))),
        ("tail_logprob", _list(pa.float32())),
        ("gold_logprob", _list(pa.float32())),
    ]
    if head.support.kind == "sampled":
        columns.append(("counts", _list(_list(pa.uint16()))))
    if head.temperatures:
        columns += [("tempered_lse", _list(_list(pa.float32()))), ("tempered_tail", _list(_list(pa.float32())))]
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in columns],
        metadata={HEAD_KEY: head.model_dump_json().encode()},
    )


def table_of(rows: Sequence[LogitRow], schema: pa.Schema) -> pa.Table:
    """Rows of a store as rows of a file."""
    kept = [row.topk_ids_PK >= 0 for row in rows]
    columns: dict[str, pa.Array] = {
        "input_ids": _flat([row.input_ids for row in rows], pa.int32()),
        "loss_mask": _flat([row.loss_mask for row in rows], pa.uint8()),
        "token_ids": _nested([row.topk_ids_PK for row in rows], kept, pa.int32()),
        "logprobs": _nested([row.topk_logprobs_PK for row in rows], kept, pa.float32()),
        "tail_logprob": _flat([row.tail_logprob_P for row in rows], pa.float32()),
        "gold_logprob": _flat([row.gold_logprob_P for row in rows], pa.float32()),
    }
    if "counts" in schema.names:
        columns["counts"] = _nested([row.counts_PK for row in rows], kept, pa.uint16())
    if "tempered_lse" in schema.names:
        every = [np.ones(row.tempered_lse_PM.shape, bool) for row in rows]
        columns["tempered_lse"] = _nested([row.tempered_lse_PM for row in rows], every, pa.float32())
        columns["tempered_tail"] = _nested([row.tempered_tail_PM for row in rows], every, pa.float32())
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _offsets(lengths: npt.ArrayLike) -> pa.Array:
    return pa.array(np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int32))


def _flat(arrays: Sequence[npt.NDArray[Any]], kind: pa.DataType) -> pa.Array:
    values = pa.array(np.concatenate(arrays), kind)
    return pa.ListArray.from_arrays(_offsets([len(array) for array in arrays]), values, type=_list(kind))


def _nested(
    arrays_PK: Sequence[npt.NDArray[Any]], kept_PK: Sequence[npt.NDArray[np.bool_]], kind: pa.DataType
) -> pa.Array:
    values = pa.array(np.concatenate([array[kept] for array, kept in zip(arrays_PK, kept_PK, strict=True)]), kind)
    positions = pa.ListArray.from_arrays(
        _offsets(np.concatenate([kept.sum(1) for kept in kept_PK])), values, type=_list(kind)
    )
    return pa.ListArray.from_arrays(_offsets([len(array) for array in arrays_PK]), positions, type=_list(_list(kind)))


def decode(columns: Columns, where: str) -> RawDocument:
    """One row; `where` names it in an error.

    Raises:
        BadInputError: lists that belong together have different lengths.
    """
    ids, logprobs, counts = columns.nested("token_ids"), columns.nested("logprobs"), columns.nested("counts")
    assert ids is not None
    assert logprobs is not None
    if not np.array_equal(ids.lengths, logprobs.lengths):
        raise BadInputError(f"{where} has positions with more ids than log-probabilities, or fewer; write it again")
    width = int(ids.lengths.max(initial=0))
    if counts is not None and not np.array_equal(ids.lengths, counts.lengths):
        raise BadInputError(f"{where} has positions with more ids than counts, or fewer; write it again")
    return RawDocument(
        where=where,
        input_ids_T=columns.tokens(),
        loss_mask_T=columns.flat("loss_mask"),
        ids_RK=ids.padded(width, -1).astype(np.int64),
        values_RK=logprobs.padded(width, -np.inf).astype(np.float32),
        tail_R=columns.flat("tail_logprob"),
        gold_R=columns.flat("gold_logprob"),
        counts_RK=None if counts is None else counts.padded(width, 0).astype(np.int64),
        tempered_lse_RM=_square(columns.nested("tempered_lse"), where),
        tempered_tail_RM=_square(columns.nested("tempered_tail"), where),
    )


def _square(ragged: Ragged | None, where: str) -> npt.NDArray[np.float32] | None:
    if ragged is None:
        return None
    width = int(ragged.lengths.max(initial=0))
    if (ragged.lengths != width).any():
        raise BadInputError(f"{where} has positions with different numbers of temperatures; write it again")
    return ragged.padded(width, 0).astype(np.float32)
