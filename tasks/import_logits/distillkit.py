"""Decodes the columns of arcee-ai's DistillKit. A row is a document, with `input_ids` and one of three sets of columns.

`compressed_logprobs`, `bytepacked_indices` (lists of R byte lists; little-endian):

    ids        k numbers of ⌈log2 d⌉ bits each, the most significant bit first, the last byte filled with zeros
    logprobs   exact_k values of `exact_dtype`, the largest first
               one coefficient of `term_dtype` for each of `polynomial_terms`
               for each bin: its scale, and its elements of `element_bits` bits, packed like the ids

    A value of rank exact_k + r is Σ coefficient · term(r), r = 0 … k − exact_k − 1 (or these mapped to 0 … 1), where a
    term is a power, sqrt or exp; plus scale · (element − 2^(bits − 1)), or scale · (2 · element − 1) for one bit, where
    a bin has the rank. With delta_encoding each is the difference to the value before.

`packed_indices`, `exact_values`, `coeffs` (legacy): ⌊64 / bits⌋ ids in a 64-bit number, the first in its lowest bits;
a value of rank exact_k + r is Σ coefficient_i · (r + 1)^(−i), or ^i, and a last term √(r + 1) if there is one.

`token_ids`, `top_values`: as they are. Optional are `labels` (−100 where a token is no target) and `attention_mask`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.artifacts.errors import BadInputError
from tasks.import_logits.raw import Columns, Ragged, RawDocument
from tasks.import_logits.stage import Compression, DistillKitFormat, FloatType, LegacyCompression

OPTIONAL = ("labels", "attention_mask")
NO_TARGET = -100
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def required_columns(form: DistillKitFormat) -> tuple[str, ...]:
    """The columns that sets of this format have."""
    if form.compression is not None:
        return ("input_ids", "compressed_logprobs", "bytepacked_indices")
    if form.legacy is not None:
        return ("input_ids", "packed_indices", "exact_values", "coeffs")
    return ("input_ids", "token_ids", "top_values")


def decode(columns: Columns, form: DistillKitFormat, where: str) -> RawDocument:
    """One row; `where` names it in an error.

    Raises:
        BadInputError: its lists are not as long as the compression makes them.
    """
    if form.compression is not None:
        ids_RK, values_RK = _current(columns, form.compression, where)
    elif form.legacy is not None:
        ids_RK, values_RK = _legacy(columns, form.legacy, where)
    else:
        ids, values = _lists(columns, "token_ids", None, where), _lists(columns, "top_values", None, where)
        if ids.shape != values.shape:
            raise BadInputError(f"{where} has {ids.shape} ids and {values.shape} values; the set is damaged")
        ids_RK, values_RK = ids.astype(np.int64), values.astype(np.float32)
    return RawDocument(where, columns.tokens(), ids_RK, values_RK, mask_of(columns))


def mask_of(columns: Columns) -> npt.NDArray[np.uint8] | None:
    """1 where a token is a target; None where the set does not say."""
    labels, attention = columns.flat("labels"), columns.flat("attention_mask")
    parts = [] if labels is None else [labels != NO_TARGET]
    parts += [] if attention is None else [attention != 0]
    # A column that is too short makes a mask that is, and that is refused beside the tokens.
    length = min((len(part) for part in parts), default=0)
    return np.all([part[:length] for part in parts], axis=0).astype(np.uint8) if parts else None


def _lists(columns: Columns, name: str, length: int | None, where: str) -> npt.NDArray[np.generic]:
    """(R, length) of a column; any one length if that is None."""
    column = columns.nested(name)
    assert isinstance(column, Ragged)
    expected = length if length is not None else int(column.lengths.max(initial=0))
    if (wrong := np.flatnonzero(column.lengths != expected)).size:
        raise BadInputError(
            f"{where}: position {wrong[0]} has {column.lengths[wrong[0]]} values in {name} where recipe.format of "
            f"import_logits makes {expected}; copy the set's own compression_config.yaml"
        )
    return column.values.reshape(-1, expected)


# The present format


def _current(columns: Columns, config: Compression, where: str) -> tuple[Int64, Float32]:
    bits = (config.d - 1).bit_length()
    parts = [
        config.exact_k * _BYTES[config.exact_dtype],
        len(config.polynomial_terms or ()) * _BYTES[config.term_dtype],
    ]
    for part in config.residual_bins:
        parts += [_BYTES[part.scale_dtype], -(-part.num_elements * part.element_bits // 8)]
    packed_RB = _lists(columns, "bytepacked_indices", -(-config.k * bits // 8), where).astype(np.uint8)
    bytes_RB = _lists(columns, "compressed_logprobs", sum(parts), where).astype(np.uint8)
    if len(packed_RB) != len(bytes_RB):
        raise BadInputError(
            f"{where} has {len(packed_RB)} positions of ids and {len(bytes_RB)} of values; it is damaged"
        )
    exact, coefficients, *bins = np.split(bytes_RB, np.cumsum(parts)[:-1], axis=1)
    num_fitted = config.k - config.exact_k
    fitted_RF = np.zeros((len(bytes_RB), num_fitted), np.float32)
    if config.polynomial_terms:
        fitted_RF += _curve(_floats(coefficients, config.term_dtype), config, num_fitted)
    start = 0
    for part, scale, elements in zip(config.residual_bins, bins[::2], bins[1::2], strict=True):
        raw = _unpacked(elements, part.element_bits, part.num_elements).astype(np.float32)
        centred = 2 * raw - 1 if part.element_bits == 1 else raw - np.float32(2 ** (part.element_bits - 1))
        fitted_RF[:, start : start + part.num_elements] += centred * _floats(scale, part.scale_dtype)
        start += part.num_elements
    values_RK = np.concatenate((_floats(exact, config.exact_dtype), fitted_RF), axis=1)
    if config.delta_encoding:
        values_RK = np.cumsum(values_RK, axis=1, dtype=np.float32)
    return _unpacked(packed_RB, bits, config.k), values_RK


def _curve(coefficients_RC: Float32, config: Compression, num_fitted: int) -> Float32:
    """Σ coefficient · term. Terms, products and sum are rounded to `term_dtype`, as where residuals were taken."""
    ranks_F = np.linspace(0, 1, num_fitted) if config.normalize_t else np.arange(num_fitted, dtype=np.float64)
    total_RF = np.zeros((len(coefficients_RC), num_fitted), np.float32)
    with np.errstate(over="ignore"):
        for place, term in enumerate(config.polynomial_terms or ()):
            special = {"sqrt": np.sqrt, "exp": np.exp}
            term_F = ranks_F**term if isinstance(term, int) else special[term](ranks_F)
            total_RF += _rounded(
                coefficients_RC[:, place, None] * _rounded(term_F.astype(np.float32), config.term_dtype),
                config.term_dtype,
            )
    return _rounded(total_RF, config.term_dtype)


def _unpacked(bytes_RB: Bytes, bits: int, count: int) -> Int64:
    """(R, count) numbers of `bits` ≤ 32 bits, the most significant first."""
    bits_RKb = np.unpackbits(bytes_RB, axis=1, count=count * bits).reshape(len(bytes_RB), count, bits)
    wide = np.zeros((len(bytes_RB), count, 32), np.uint8)
    wide[:, :, 32 - bits :] = bits_RKb
    return np.packbits(wide, axis=2).view(">u4")[:, :, 0].astype(np.int64)


def _floats(bytes_RB: Bytes, kind: FloatType) -> Float32:
    """Little-endian floats as float32."""
    contiguous = np.ascontiguousarray(bytes_RB)
    if kind == "bfloat16":
        return (contiguous.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return contiguous.view(np.dtype(kind).newbyteorder("<")).astype(np.float32)


def _rounded(values: Float32, kind: FloatType) -> Float32:
    """float32 values that a narrower type can hold: the nearest, and of two the even one."""
    if kind == "bfloat16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return values.astype(np.float16).astype(np.float32) if kind == "float16" else values


# The format before


def _legacy(columns: Columns, config: LegacyCompression, where: str) -> tuple[Int64, Float32]:
    bits = (config.vocab_size - 1).bit_length()
    per_word, num_fitted = 64 // bits, config.k - config.exact_k
    num_terms = config.polynomial_degree + 1 + int(config.with_sqrt_term) if num_fitted else 0
    words_RW = _lists(columns, "packed_indices", -(-config.k // per_word), where).astype(np.uint64)
    exact_RE = _lists(columns, "exact_values", config.exact_k, where).astype(np.float32)
    coefficients_RC = _lists(columns, "coeffs", num_terms, where).astype(np.float32)
    if not len(words_RW) == len(exact_RE) == len(coefficients_RC):
        raise BadInputError(f"{where} has different numbers of positions in its columns; it is damaged")
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    ids_RK = (words_RW[:, :, None] >> shifts & np.uint64(2**bits - 1)).reshape(len(words_RW), -1)[:, : config.k]
    ranks_F = np.arange(1, num_fitted + 1, dtype=np.float64)
    sign = -1 if config.invert_polynomial else 1
    terms = [ranks_F ** (sign * power) for power in range(config.polynomial_degree + 1)]
    terms += [np.sqrt(ranks_F)] if config.with_sqrt_term else []
    fitted_RF = coefficients_RC @ np.stack(terms).astype(np.float32) if num_fitted else np.empty((len(words_RW), 0))
    return ids_RK.astype(np.int64), np.concatenate((exact_RE, fitted_RF), axis=1).astype(np.float32)
