"""A dump on a CUDA device against the same dump on the CPU, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tasks.artifacts.artifact import Artifact
from tests.dump_logits.conftest import VOCAB, make_model, make_row
from tests.dump_logits.test_dump import all_rows

pytestmark = pytest.mark.gpu
NATS = {"float32": 1e-4, "bfloat16": 0.05}
"""What gold log-probabilities may differ by on average: rounding, in a model whose logits spread by 2 nats."""


@pytest.mark.parametrize("dtype", NATS)
def test_a_forward_pass_is_the_cpus(cuda: str, dtype: str) -> None:
    ids_1T = torch.from_numpy(make_row(40, 7).input_ids).long()[None]
    with torch.inference_mode():
        expected_TV = make_model()(ids_1T).logits[0, :, :VOCAB].log_softmax(-1)
        model = torch.nn.Module.to(make_model(), cuda, getattr(torch, dtype))
        found_TV = model(ids_1T.to(cuda)).logits[0, :, :VOCAB].float().log_softmax(-1).cpu()
    divergence_T = (expected_TV.exp() * (expected_TV - found_TV)).sum(-1)
    assert divergence_T.mean() < NATS[dtype] / 5


@pytest.mark.parametrize("dtype", NATS)
def test_a_dump_is_the_cpus(
    cuda: str,
    dtype: str,
    run_stage: Callable[..., Artifact],
    recipe_of: Callable[..., dict[str, Any]],
    inputs: dict[str, Artifact],
) -> None:
    expected = run_stage("dump_logits", recipe_of(), inputs, {"device": "cpu"})
    # Another size of shards, so that it is another artifact.
    recipe = recipe_of(teacher={"dtype": dtype}, rows_per_shard=4)
    found = run_stage("dump_logits", recipe, inputs, {"device": cuda})
    differences = []
    for split in ("train", "heldout"):
        for one, other in zip(all_rows(found, split), all_rows(expected, split), strict=True):
            assert one.row_id == other.row_id
            differences.append(np.abs(one.gold_logprob_P - other.gold_logprob_P))
    assert np.concatenate(differences).mean() < NATS[dtype]
    manifest = found.manifest()
    assert manifest is not None
    assert manifest.metrics["gold_error"] < NATS[dtype]
