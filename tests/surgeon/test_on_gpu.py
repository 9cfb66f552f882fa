"""Surgeries on a CUDA device against the CPU's, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.modeling.model_files import copy_tokenizer_files, load_causal_lm, save_causal_lm
from tests.committed import metrics_of
from tests.surgeon.test_reversion import STRATEGIES, reversion
from tests.surgeon.test_surgery import COMPOSED, TRANSPLANT, MakeModel, RunStage, fetched, tensors_of
from tests.training.dense import relative

pytestmark = pytest.mark.gpu
ERROR = 1e-4
"""Relative, of a matrix: sums in another order, and systems of eight equations that are solved."""
TRANSPLANTS = {"omp_anchored": TRANSPLANT, "omp": {**TRANSPLANT, "method": "omp"}, "composed": COMPOSED}


def _same_on_both(
    run_stage: RunStage, cuda: str, folder: Path, recipe: dict[str, Any], inputs: dict[str, Path]
) -> Path:
    """The CPU's result, once the device's is known to be the same."""
    made = {device: run_stage("surgeon", recipe, inputs, {"device": device}) for device in ("cpu", cuda)}
    results = {device: fetched(artifact, folder / device) for device, artifact in made.items()}
    expected, found = (tensors_of(result) for result in results.values())
    assert expected.keys() == found.keys()
    errors = {name: relative(found[name], tensor) for name, tensor in expected.items()}
    assert max(errors.values()) < ERROR, errors
    bits, others = (metrics_of(artifact)["bits_per_byte_after"] for artifact in made.values())
    assert others == pytest.approx(bits, rel=ERROR)
    return results["cpu"]


@pytest.mark.parametrize("method", TRANSPLANTS)
def test_a_transplant_is_the_cpus(
    cuda: str, method: str, tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    inputs = {"student": make_student(), "donor": make_donor()}
    _same_on_both(run_stage, cuda, tmp_path / "made", TRANSPLANTS[method], inputs)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_reversion_is_the_cpus(
    cuda: str, strategy: str, tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    student, trained = make_student(), tmp_path / "trained"
    transplanted = fetched(run_stage("surgeon", COMPOSED, {"student": student, "donor": make_donor()}), tmp_path / "to")
    model = load_causal_lm(transplanted, dtype=torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_causal_lm(model, trained)
    copy_tokenizer_files(transplanted, trained)
    inputs = {"trained": trained, "original": student}
    _same_on_both(run_stage, cuda, tmp_path / "made", reversion(strategy), inputs)
