"""Logit sets as others write them: a tiny teacher's distributions, and encoders made from the formats' definitions."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel

from tasks.logits.rows import Row
from tests.training.parts import dense_logits, make_model, make_row

TEACHER = make_model(seed=1, initializer_range=0.5)
LENGTHS = [5, 12, 3, 9, 1, 17, 8, 2, 14, 6, 11, 4, 20, 7, 15, 10]


def documents() -> list[Row]:
    return [make_row(length, seed) for seed, length in enumerate(LENGTHS)]


def logprobs_PV(row: Row, model: PreTrainedModel = TEACHER) -> np.ndarray:
    """(T − 1, V) in float64."""
    logits_PV = dense_logits(model, row)
    logits_PV = logits_PV - logits_PV.max(1, keepdims=True)
    return logits_PV - np.log(np.exp(logits_PV).sum(1, keepdims=True))


def largest(full_PV: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of the likeliest tokens, in order."""
    ids_PK = np.argsort(-full_PV, axis=1, kind="stable")[:, :count]
    return ids_PK, np.take_along_axis(full_PV, ids_PK, 1)


def write_plain(path: Path, rows: Sequence[Row], count: int = 6, **columns: list[Any]) -> Path:
    """A plain file with only the columns that must be there, and those given; None leaves one out."""
    kept = [largest(logprobs_PV(row), count) if len(row.input_ids) > 1 else ([], []) for row in rows]
    table: dict[str, Any] = {
        "input_ids": [row.input_ids.tolist() for row in rows],
        "token_ids": [[list(map(int, ids)) for ids in document] for document, _ in kept],
        "logprobs": [[list(map(float, values)) for values in document] for _, document in kept],
    }
    return write_table(path, table | columns)


KINDS = {
    "input_ids": pa.list_(pa.int64()),
    "token_ids": pa.list_(pa.list_(pa.int64())),
    "logprobs": pa.list_(pa.list_(pa.float32())),
    "top_values": pa.list_(pa.list_(pa.float32())),
    "compressed_logprobs": pa.list_(pa.list_(pa.uint8())),
    "bytepacked_indices": pa.list_(pa.list_(pa.uint8())),
    "packed_indices": pa.list_(pa.list_(pa.uint64())),
    "exact_values": pa.list_(pa.list_(pa.float32())),
    "coeffs": pa.list_(pa.list_(pa.float32())),
}


def write_table(path: Path, columns: Mapping[str, list[Any]]) -> Path:
    """Lists as parquet, seven rows a group."""
    arrays = {name: pa.array(values, KINDS.get(name)) for name, values in columns.items() if values is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path, row_group_size=7)
    return path


# DistillKit's format, number by number


def bit_string(numbers: Sequence[int], bits: int) -> list[int]:
    """Bytes of the numbers' bits one after the other, the most significant first."""
    text = "".join(format(int(number), f"0{bits}b") for number in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def float_bytes(value: float, kind: str) -> list[int]:
    if kind == "bfloat16":
        return list(bf16(value))
    return list(struct.pack({"float16": "<e", "float32": "<f", "float64": "<d"}[kind], value))


def bf16(value: float) -> bytes:
    """The nearest of the two neighbours whose lower half is zero."""
    [bits] = struct.unpack("<I", struct.pack("<f", value))
    low, high = bits & 0xFFFF0000, (bits & 0xFFFF0000) + 0x10000
    near = min((low, high), key=lambda each: abs(struct.unpack("<f", struct.pack("<I", each))[0] - value))
    return struct.pack("<H", near >> 16)


def term(name: Any, rank: float) -> float:
    return {"sqrt": math.sqrt, "exp": math.exp}[name](rank) if isinstance(name, str) else rank**name


def compress(values: Sequence[float], config: Mapping[str, Any]) -> list[int]:
    """One position's `compressed_logprobs`."""
    values = list(values)
    if config.get("delta_encoding", True):
        values = [values[0], *(b - a for a, b in pairwise(values))]
    exact, rest = values[: config["exact_k"]], np.array(values[config["exact_k"] :])
    data = [byte for value in exact for byte in float_bytes(value, config.get("exact_dtype", "float32"))]
    terms = config.get("polynomial_terms") or []
    if terms:
        count = len(rest)
        ranks = [rank / (count - 1) if config.get("normalize_t") else rank for rank in range(count)]
        curve = np.array([[term(name, rank) for name in terms] for rank in ranks])
        coefficients = np.linalg.lstsq(curve, rest, rcond=None)[0].astype(np.float32)
        data += [byte for value in coefficients for byte in float_bytes(value, config.get("term_dtype", "float32"))]
        rest = rest - curve @ coefficients
    start = 0
    for part in config.get("residual_bins", []):
        bits, here = part["element_bits"], rest[start : start + part["num_elements"]]
        scale = max(abs(here)) / 2 ** (bits - 1) or 1.0
        data += float_bytes(scale, part["scale_dtype"])
        low = -(2 ** (bits - 1))
        data += bit_string([min(max(round(value / scale), low), -low - 1) - low for value in here], bits)
        start += part["num_elements"]
    return data


def write_distillkit(path: Path, rows: Sequence[Row], config: Mapping[str, Any], **columns: Any) -> Path:
    """What sample_logits_vllm writes of these documents."""
    bits = math.ceil(math.log2(config["d"]))
    packed, compressed = [], []
    for row in rows:
        ids_PK, values_PK = largest(logprobs_PV(row), config["k"]) if len(row.input_ids) > 1 else ([], [])
        packed.append([bit_string(ids, bits) for ids in ids_PK])
        compressed.append([compress(values, config) for values in values_PK])
    table = {
        "input_ids": [row.input_ids.tolist() for row in rows],
        "compressed_logprobs": compressed,
        "bytepacked_indices": packed,
    }
    return write_table(path, table | columns)
