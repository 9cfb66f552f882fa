"""DistillKit's published format, written here number by number from its definition and read by the stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.logits.reader import LogitReader, LogitRow
from tasks.logits.verify import verify
from tests.committed import metrics_of
from tests.import_logits.sets import documents, largest, logprobs_PV, write_distillkit, write_table
from tests.training.parts import VOCAB

RESIDUALS = [
    {"scale_dtype": "float16", "element_bits": 7, "num_elements": 5},
    {"scale_dtype": "float32", "element_bits": 3, "num_elements": 4},
]
BASE: dict[str, Any] = {"d": VOCAB + 1, "k": 16, "exact_k": 4, "exact_dtype": "float32", "delta_encoding": False}
RECOMMENDED = {**BASE, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]}


def rows_of(artifact: Artifact) -> dict[str, LogitRow]:
    """All rows by id, after the whole store was verified."""
    manifest = artifact.manifest()
    assert manifest is not None
    assert verify(artifact.store, artifact.directory, manifest) == []
    reader = LogitReader(artifact.store, artifact.directory, manifest)
    splits = [reader.rows(split) for split in reader.schema.num_rows]
    return {rows[index].row_id: rows[index] for rows in splits for index in range(len(rows))}


@pytest.mark.parametrize(
    ("config", "bound"),
    [
        ({**BASE, "exact_k": 16}, 1e-6),
        ({**BASE, "exact_k": 16, "delta_encoding": True}, 5e-6),
        ({**BASE, "exact_k": 16, "exact_dtype": "float16"}, 0.01),
        ({**BASE, "residual_bins": [{"scale_dtype": "float32", "element_bits": 12, "num_elements": 12}]}, 0.02),
        # A curve through ranks that an untrained teacher leaves uneven is off by some tenths of a nat.
        (RECOMMENDED, 1.0),
        ({**BASE, "polynomial_terms": [0, 1, "exp"], "normalize_t": True, "residual_bins": RESIDUALS}, 1.0),
        ({**BASE, "polynomial_terms": [0, 1, 2], "delta_encoding": True}, 3.0),
    ],
)
def test_every_setting_decodes_to_what_was_encoded(
    tmp_path: Path, import_files: Callable[..., Artifact], config: dict[str, Any], bound: float
) -> None:
    rows = documents()
    path = write_distillkit(tmp_path / "set" / "data_0.parquet", rows, config)
    artifact = import_files(path, format={"kind": "distillkit", "compression": config})
    found = rows_of(artifact)
    assert len(found) == len(rows)
    for row in rows:
        got = found[row.row_id]
        np.testing.assert_array_equal(got.input_ids, row.input_ids)
        assert got.loss_mask.tolist() == [0, *[1] * (len(row.input_ids) - 1)]
        full_PV = logprobs_PV(row) if len(row.input_ids) > 1 else np.empty((0, VOCAB))
        assert got.topk_ids_PK.shape == (len(full_PV), 16)
        ids_PK, values_PK = largest(full_PV, 16)
        assert np.array_equal(np.sort(got.topk_ids_PK, axis=1), np.sort(ids_PK, axis=1))
        again_PK = np.take_along_axis(full_PV, got.topk_ids_PK.astype(np.int64), 1)
        np.testing.assert_allclose(got.topk_logprobs_PK, again_PK, atol=bound)
        # The format stores no tail: it is what is missing to 1.
        missing_P = np.maximum(1 - np.exp(got.topk_logprobs_PK.astype(np.float64)).sum(1), 0)
        np.testing.assert_allclose(np.exp(got.tail_logprob_P), missing_P, atol=1e-5)
        if bound < 1e-4:
            np.testing.assert_allclose(np.exp(got.tail_logprob_P), 1 - np.exp(values_PK).sum(1), atol=1e-5)
    metrics = metrics_of(artifact)
    assert metrics["captured_mass"] + metrics["tail_mass"] == pytest.approx(1, abs=1e-5)
    assert 0 < metrics["gold_known"] < 1


def test_a_curve_is_the_one_that_was_fitted(tmp_path: Path, import_files: Callable[..., Artifact]) -> None:
    """Values that lie on the curve come back exactly, whichever terms it has; a wrong rank or term would not."""
    rows = [row for row in documents() if len(row.input_ids) > 1]
    ranks = np.arange(12.0)
    tail_F = -4.0 - 0.02 * ranks**2 - 0.3 * np.sqrt(ranks)
    values = [-1.5, -2.0, -2.5, -3.0, *tail_F]
    config = {**BASE, "polynomial_terms": [0, 2, "sqrt"]}
    from tests.import_logits.sets import bit_string, compress

    path = write_table(
        tmp_path / "set.parquet",
        {
            "input_ids": [row.input_ids.tolist() for row in rows],
            "compressed_logprobs": [[compress(values, config)] * (len(row.input_ids) - 1) for row in rows],
            "bytepacked_indices": [[bit_string(range(20, 36), 6)] * (len(row.input_ids) - 1) for row in rows],
        },
    )
    for got in rows_of(import_files(path, format={"kind": "distillkit", "compression": config})).values():
        np.testing.assert_allclose(got.topk_logprobs_PK, np.tile(values, (len(got.topk_ids_PK), 1)), atol=1e-5)
        np.testing.assert_array_equal(got.topk_ids_PK, np.tile(range(20, 36), (len(got.topk_ids_PK), 1)))


@pytest.mark.parametrize("invert", [True, False])
def test_the_format_before(tmp_path: Path, import_files: Callable[..., Artifact], invert: bool) -> None:
    """Ids from the lowest bits of 64-bit numbers, powers of rank + 1."""
    rows = [row for row in documents() if len(row.input_ids) > 1]
    legacy = {"k": 16, "exact_k": 10, "polynomial_degree": 1, "vocab_size": 60, "invert_polynomial": invert}
    exact = [-1.5 - 0.25 * rank for rank in range(10)]
    fitted = [-8 + 3 / (rank + 1) if invert else -4 - 0.5 * (rank + 1) for rank in range(6)]
    words = [sum((30 + 10 * word + place) << (6 * place) for place in range(10)) for word in range(2)]
    words[1] &= (1 << 36) - 1
    counts = [len(row.input_ids) - 1 for row in rows]
    path = write_table(
        tmp_path / "set.parquet",
        {
            "input_ids": [row.input_ids.tolist() for row in rows],
            "packed_indices": [[words] * count for count in counts],
            "exact_values": [[exact] * count for count in counts],
            "coeffs": [[[-8.0, 3.0] if invert else [-4.0, -0.5]] * count for count in counts],
        },
    )
    for got in rows_of(import_files(path, format={"kind": "distillkit", "legacy": legacy})).values():
        expected = sorted(zip([*exact, *fitted], range(30, 46), strict=True), key=lambda pair: (-pair[0], pair[1]))
        np.testing.assert_allclose(got.topk_logprobs_PK[0], [value for value, _ in expected], atol=1e-6)
        assert got.topk_ids_PK[0].tolist() == [token for _, token in expected]


def test_labels_become_the_loss_mask(tmp_path: Path, import_files: Callable[..., Artifact]) -> None:
    rows = documents()
    labels = [[int(token) if target else -100 for token, target in zip(row.input_ids, row.loss_mask)] for row in rows]  # noqa: B905
    config = {**BASE, "exact_k": 16}
    path = write_distillkit(tmp_path / "set.parquet", rows, config, labels=labels)
    found = rows_of(import_files(path, format={"kind": "distillkit", "compression": config}))
    for row in rows:
        np.testing.assert_array_equal(found[row.row_id].loss_mask, row.loss_mask)


def test_raw_logits_are_taken_for_the_whole_distribution_only_where_that_is_said(
    tmp_path: Path, import_files: Callable[..., Artifact]
) -> None:
    rows = [row for row in documents() if len(row.input_ids) > 1]
    kept = [largest(logprobs_PV(row), 6) for row in rows]
    path = write_table(
        tmp_path / "set.parquet",
        {
            "input_ids": [row.input_ids.tolist() for row in rows],
            "token_ids": [ids_PK.tolist() for ids_PK, _ in kept],
            "top_values": [(values_PK + 20).tolist() for _, values_PK in kept],
        },
    )
    with pytest.raises(BadInputError, match=r"sum to .* if they are logits, set recipe\.format\.values"):
        import_files(path, format={"kind": "distillkit"})
    artifact = import_files(path, format={"kind": "distillkit", "values": "logits"})
    assert metrics_of(artifact)["captured_mass"] == pytest.approx(1, abs=1e-5)
    row, (_, values_PK) = rows[0], kept[0]
    expected_PK = values_PK - np.log(np.exp(values_PK).sum(1, keepdims=True))
    np.testing.assert_allclose(rows_of(artifact)[row.row_id].topk_logprobs_PK, expected_PK, atol=1e-5)


def test_another_compression_than_the_sets_own_is_refused(
    tmp_path: Path, import_files: Callable[..., Artifact]
) -> None:
    path = write_distillkit(tmp_path / "set.parquet", documents(), RECOMMENDED)
    with pytest.raises(BadInputError, match=r"has 32 values in compressed_logprobs where .* makes 64"):
        import_files(path, format={"kind": "distillkit", "compression": {**BASE, "exact_k": 16}})
    with pytest.raises(BadInputError, match=r"no column token_ids, only input_ids, compressed_logprobs"):
        import_files(path, format={"kind": "distillkit"})
