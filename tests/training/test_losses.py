"""The fused loss against a dense float64 formula written from the definition, with autograd's gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.artifacts.errors import BadInputError
from tasks.training import losses
from tasks.training.buckets import LOG_FLOOR
from tasks.training.losses import PARTS, HeadForm, LossWeights, Targets, head_loss
from tests.training.dense import dense_loss, drawn, gold_of, gradients, relative, teacher
from tests.training.parts import gold_targets

N, D, V, ROWS, K = 23, 12, 57, 64, 5
EMPTY = (0, 2, 4)
"""Empty slots of the rows 0, 1, 2; all other rows are full."""
FORM = HeadForm(V)
DIVERGENCES = [LossWeights(forward_kl=1), LossWeights(reverse_kl=1), LossWeights(jsd=1, jsd_beta=0.3)]

Tensors = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def tensors() -> Tensors:
    """Hidden states, the head's matrix, and a teacher's logits."""
    generator = torch.Generator().manual_seed(7)
    hidden_ND = torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight_RD = torch.randn(ROWS, D, generator=generator, dtype=torch.float64)
    teacher_NV = 3 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    return hidden_ND, weight_RD, teacher_NV


@pytest.mark.parametrize(
    ("weights", "form"),
    [
        *((weights, FORM) for weights in DIVERGENCES),
        (LossWeights(ce=1), FORM),
        (LossWeights(forward_kl=0.7, reverse_kl=0.2, jsd=0.4, ce=0.3), FORM),
        (LossWeights(forward_kl=1, ce=0.5, temperature=2), FORM),
        (LossWeights(reverse_kl=1, jsd=0.5, jsd_beta=0.9, temperature=0.7), FORM),
        (LossWeights(forward_kl=1, ce=0.3, entropy_exponent=-0.8), FORM),
        (LossWeights(forward_kl=1, ce=0.5), HeadForm(V, scale=0.25)),
        (LossWeights(forward_kl=1, jsd=0.2, ce=0.5, temperature=1.5), HeadForm(V, scale=3.0, softcap=5.0)),
    ],
    ids=str,
)
def test_equals_the_dense_definition(tensors: Tensors, weights: LossWeights, form: HeadForm) -> None:
    hidden, weight, teacher_logits = tensors
    targets = teacher(teacher_logits, K, weights.temperature, EMPTY)
    expected = gradients(lambda h, w: dense_loss(h, w, targets, form, weights)[0], hidden, weight)
    sums = dense_loss(hidden, weight, targets, form, weights)[1]
    for dtype, tolerance, chunks in ((torch.float64, 1e-12, (1, 7, 1000)), (torch.float32, 1e-5, (7, N))):
        for chunk in chunks:
            found = gradients(
                lambda h, w, c=chunk: head_loss(h, w, targets, form=form, weights=weights, chunk_tokens=c)[0],
                hidden.to(dtype),
                weight.to(dtype),
            )
            for name, value, reference in zip(("loss", "dX", "dW"), found, expected, strict=True):
                assert value.dtype == dtype
                assert relative(value, reference) <= tolerance, (name, dtype, chunk)
            assert found[2][V:].abs().max() == 0, "padding rows take no part"
            with torch.no_grad():
                parts = head_loss(hidden.to(dtype), weight.to(dtype), targets, form=form, weights=weights)[1]
            torch.testing.assert_close(parts, sums, rtol=tolerance, atol=1e-9)


@pytest.mark.parametrize(
    ("weights", "form", "num_draws"),
    [
        *((weights, HeadForm(17), 0) for weights in DIVERGENCES),
        *((replace(weights, temperature=2.0), HeadForm(17), 0) for weights in DIVERGENCES),
        (LossWeights(ce=1), HeadForm(17), 0),
        (LossWeights(0.6, 0.3, 0.5, ce=0.4), HeadForm(17), 0),
        (LossWeights(0.6, 0.3, 0.5, ce=0.4, temperature=1.7, entropy_exponent=0.2), HeadForm(17, 1.3, 6.0), 0),
        (LossWeights(0.7, ce=0.3), HeadForm(17), 9),
    ],
    ids=str,
)
def test_gradcheck(tensors: Tensors, weights: LossWeights, form: HeadForm, num_draws: int) -> None:
    hidden, weight, teacher_logits = tensors
    part = teacher_logits[:4, :17]
    targets = drawn(part, num_draws, seed=3) if num_draws else teacher(part, K, weights.temperature, EMPTY)
    assert torch.autograd.gradcheck(
        lambda h, w: head_loss(h, w, targets, form=form, weights=weights, chunk_tokens=3)[0],
        (hidden[:4, :3].clone().requires_grad_(), weight[:19, :3].clone().requires_grad_()),
    )


def test_gradient_outside_the_kept_entries(tensors: Tensors) -> None:
    """With an identity head dX is the gradient by the logits: q_j (1 − p_tail / q_tail) off the top K."""
    _, _, teacher_logits = tensors
    logits = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    targets = teacher(teacher_logits, K)
    eye = torch.eye(V, dtype=torch.float64)
    _, grad, _ = gradients(
        lambda h, w: head_loss(h, w, targets, form=FORM, weights=LossWeights(forward_kl=1))[0], logits, eye
    )
    q = torch.softmax(logits, 1)
    outside = torch.ones(N, V, dtype=torch.bool).scatter_(1, targets.topk_ids_NK, False)
    q_tail = torch.where(outside, q, 0).sum(1, keepdim=True)
    expected = q * (1 - targets.tail_logprob_N[:, None].double().exp() / q_tail)
    assert torch.allclose(grad[outside], expected[outside], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("weights", DIVERGENCES, ids=str)
@pytest.mark.parametrize("num_kept", [1, K, V])
def test_zero_at_the_teacher_and_never_negative(tensors: Tensors, num_kept: int, weights: LossWeights) -> None:
    hidden, weight, _ = tensors
    targets = teacher(hidden @ weight[:V].T, num_kept)
    for row in range(N):
        one = head_loss(hidden[row, None].float(), weight.float(), targets.rows(slice(row, row + 1)), form=FORM,
                        weights=weights)[0]  # fmt: skip
        assert abs(float(one)) < 1e-6
    for scale in (0.0, 0.999, 1.001, 30.0):
        loss, parts = head_loss(scale * hidden.float(), weight.float(), targets, form=FORM, weights=weights)
        assert loss >= -1e-9 * N
        assert float(parts[:3].max()) >= float(loss) * (1 - 1e-6)


def test_divergence_between_forward_and_reverse(tensors: Tensors) -> None:
    """JSD(β) / β → the forward KL as β → 0, JSD(β) / (1 − β) → the reverse KL as β → 1, and it is bounded."""
    hidden, weight, teacher_logits = tensors
    targets = teacher(0.3 * teacher_logits, K, empty=EMPTY)
    # Far from the teacher the limits are reached at smaller β than float64 has digits for.
    near = 0.3 * hidden

    def part(name: str, weights: LossWeights) -> float:
        return float(head_loss(near, weight, targets, form=FORM, weights=weights)[1][PARTS.index(name)])

    forward, reverse = (part(name, LossWeights(1, 1)) for name in ("forward_kl", "reverse_kl"))
    assert part("jsd", LossWeights(jsd=1, jsd_beta=1e-6)) / 1e-6 == pytest.approx(forward, rel=1e-3)
    assert part("jsd", LossWeights(jsd=1, jsd_beta=1 - 1e-6)) / 1e-6 == pytest.approx(reverse, rel=1e-3)
    sure = teacher(5 * teacher_logits, K)
    half = head_loss(100 * hidden, weight, sure, form=FORM, weights=LossWeights(jsd=1))[1][2]
    assert 0.5 * N * math.log(2) < float(half) < N * math.log(2)
    with pytest.raises(BadInputError, match="jsd_beta"):
        LossWeights(jsd=1, jsd_beta=1.0)


def test_a_student_with_mass_where_the_teacher_has_none_is_pushed_with_the_floor(tensors: Tensors) -> None:
    hidden, weight, teacher_logits = tensors
    stored = teacher(teacher_logits, K)
    targets = replace(stored, tail_logprob_N=torch.full((N,), -torch.inf))
    weights = LossWeights(reverse_kl=1)
    loss, by_hidden, _ = gradients(
        lambda h, w: head_loss(h, w, targets, form=FORM, weights=weights)[0], hidden.float(), weight.float()
    )
    expected = gradients(lambda h, w: dense_loss(h, w, targets, FORM, weights)[0], hidden, weight)
    assert relative(loss, expected[0]) < 1e-6
    assert relative(by_hidden, expected[1]) < 1e-5
    assert float(loss) < -LOG_FLOOR * N


def test_stored_rounding_cannot_make_it_negative(tensors: Tensors) -> None:
    """Rounded entries sum to more or less than one; a KL of such masses would go below zero near the teacher."""
    hidden, weight, _ = tensors
    exact = teacher(hidden @ weight[:V].T, K)
    for shift in (-3e-3, 3e-3):
        rounded = Targets(exact.gold_N, exact.topk_ids_NK, exact.topk_logprobs_NK + shift, exact.tail_logprob_N + shift)
        loss, _ = head_loss(
            hidden.float(), weight.float(), rounded, form=FORM, weights=LossWeights(forward_kl=1, reverse_kl=1, jsd=1)
        )
        assert abs(float(loss)) / N < 1e-6


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_finite_at_the_edges(tensors: Tensors, scale: float) -> None:
    """Logits up to 2000, at which one exponential less would overflow; no tail, everything kept, no teacher."""
    hidden, weight, teacher_logits = tensors
    full = teacher(teacher_logits, K, empty=EMPTY)
    everything = teacher(teacher_logits, V)
    for targets in (
        full,
        replace(full, tail_logprob_N=torch.full((N,), -torch.inf)),
        everything,
        replace(everything, tail_logprob_N=torch.full((N,), -16.0)),
        gold_targets(full.gold_N),
    ):
        for weights in (LossWeights(0.5, ce=0.5), LossWeights(reverse_kl=0.5, jsd=0.5, ce=0.5, temperature=2)):
            found = gradients(
                lambda h, w, t=targets, lw=weights: head_loss(h, w, t, form=FORM, weights=lw)[0],
                scale * hidden.float(),
                weight.float(),
            )
            assert all(torch.isfinite(part).all() for part in found)


def test_logits_far_from_zero_lose_nothing(tensors: Tensors) -> None:
    """A tail of e^−120 to e^160 beside the kept entries, whose plain exponentials float32 cannot hold."""
    hidden, weight, teacher_logits = tensors
    targets = teacher(teacher_logits, K)
    weights = LossWeights(forward_kl=1, ce=0.3)
    for offset in (-120.0, 160.0):
        shifted = torch.cat((hidden, torch.full((N, 1), offset, dtype=torch.float64)), 1)
        head = torch.cat((weight, torch.ones(ROWS, 1, dtype=torch.float64)), 1)
        expected = gradients(lambda h, w: dense_loss(h, w, targets, FORM, weights)[0], shifted, head)
        found = gradients(
            lambda h, w: head_loss(h, w, targets, form=FORM, weights=weights)[0], shifted.float(), head.float()
        )
        for one, other in zip(found, expected, strict=True):
            assert relative(one, other) < 3e-5, offset


def test_without_a_teacher_it_is_cross_entropy(tensors: Tensors) -> None:
    hidden, weight, teacher_logits = tensors
    gold = gold_of(teacher_logits)
    expected = torch.nn.functional.cross_entropy(hidden @ weight[:V].T, gold, reduction="sum")
    for weights in (LossWeights(ce=1), LossWeights(ce=1, temperature=3)):
        loss, parts = head_loss(hidden, weight, gold_targets(gold), form=FORM, weights=weights)
        assert float(loss) == pytest.approx(float(expected), rel=1e-12)
        assert float(parts[3]) == pytest.approx(float(expected), rel=1e-12)
        assert parts[:3].abs().max() < 1e-12


def test_without_grad_mode_no_gradient_is_computed(tensors: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head's weight asks for a gradient even where nobody will run backward, as in a held-out batch."""
    hidden, weight, teacher_logits = tensors
    targets = teacher(teacher_logits, K)
    weight.requires_grad_()
    products: list[Tensor] = []

    def counted(*args: Any, **options: Any) -> None:
        products.append(args[0])
        real(*args, **options)

    real = losses.add_weight_gradient
    monkeypatch.setattr(losses, "add_weight_gradient", counted)
    weights = LossWeights(0.5, ce=0.5)
    with torch.no_grad():
        without, same_parts = head_loss(hidden, weight, targets, form=FORM, weights=weights)
    assert not products
    with_grad, parts = head_loss(hidden, weight, targets, form=FORM, weights=weights)
    assert products
    assert with_grad.requires_grad
    assert not without.requires_grad
    assert torch.equal(with_grad, without)
    assert torch.equal(parts, same_parts)


def test_backward_can_run_again_where_the_graph_is_kept(tensors: Tensors) -> None:
    """Otherwise it scales the only copy of the gradient in place."""
    hidden, weight, teacher_logits = tensors
    weight.requires_grad_()
    loss, _ = head_loss(hidden, weight, teacher(teacher_logits, K), form=FORM, weights=LossWeights(1))
    (first,) = torch.autograd.grad(2 * loss, weight, retain_graph=True)
    (second,) = torch.autograd.grad(2 * loss, weight)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(2 * loss, weight)


def test_no_target_gives_zero_with_a_graph(tensors: Tensors) -> None:
    hidden, weight, teacher_logits = tensors
    targets = teacher(teacher_logits, K).head(0)
    for dtype in (torch.float32, torch.bfloat16):
        loss, by_hidden, by_weight = gradients(
            lambda h, w: head_loss(h, w, targets, form=FORM, weights=LossWeights(1, ce=1))[0],
            hidden[:0].to(dtype),
            weight.to(dtype),
        )
        assert float(loss) == 0
        assert by_hidden.shape == (0, D)
        assert by_weight.abs().max() == 0


def test_bfloat16_sums_in_float32(tensors: Tensors) -> None:
    """Logits and losses as exact as in float32; gradients to their own type's rounding."""
    hidden, weight, teacher_logits = (tensor.bfloat16() for tensor in tensors)
    targets = teacher(teacher_logits.double(), K, empty=EMPTY)
    weights = LossWeights(1, reverse_kl=0.2)
    expected = gradients(lambda h, w: dense_loss(h, w, targets, FORM, weights)[0], hidden.double(), weight.double())
    precision = torch.backends.mkldnn.matmul.fp32_precision
    for chunk in (4, 9, N):
        found = gradients(
            lambda h, w, c=chunk: head_loss(h, w, targets, form=FORM, weights=weights, chunk_tokens=c)[0],
            hidden,
            weight,
        )
        assert found[0].dtype == torch.float32
        assert relative(found[0], expected[0]) < 1e-6
        for value, reference in zip(found[1:], expected[1:], strict=True):
            assert value.dtype == torch.bfloat16
            assert relative(value, reference) < 2**-8
        assert found[2][V:].abs().max() == 0
    assert torch.backends.mkldnn.matmul.fp32_precision == precision, "no setting stays behind"


def test_draws_weigh_the_loss(tensors: Tensors) -> None:
    hidden, weight, teacher_logits = tensors
    targets = drawn(teacher_logits, 12, seed=3)
    weights = LossWeights(0.7, ce=0.3)
    expected = gradients(lambda h, w: dense_loss(h, w, targets, FORM, weights)[0], hidden, weight)
    for chunk in (4, N):
        found = gradients(
            lambda h, w, c=chunk: head_loss(h, w, targets, form=FORM, weights=weights, chunk_tokens=c)[0],
            hidden,
            weight,
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for weights in (LossWeights(reverse_kl=1), LossWeights(1, jsd=0.1), LossWeights(1, entropy_exponent=0.5)):
        with pytest.raises(BadInputError, match="sampled support"):
            head_loss(hidden, weight, targets, form=FORM, weights=weights)


def test_the_mean_gradient_over_draws_is_that_of_the_whole_distribution(tensors: Tensors) -> None:
    """Unbiased, where a renormalised truncation never is."""
    hidden, weight, teacher_logits = tensors

    def by_hidden(targets: Targets) -> Tensor:
        return gradients(
            lambda h, w: head_loss(h, w, targets, form=FORM, weights=LossWeights(forward_kl=1))[0], hidden, weight
        )[1]

    whole = by_hidden(teacher(teacher_logits, V))
    samples = torch.stack([by_hidden(drawn(teacher_logits, 20, seed)) for seed in range(200)])
    error = (samples.mean(0) - whole).abs()
    # 276 numbers: the largest of as many normal deviates is about 3; five standard errors are never reached by chance.
    assert (error <= 5 * samples.std(0) / 200**0.5).all()


def test_draws_from_the_student_itself_leave_no_loss(tensors: Tensors) -> None:
    hidden, weight, _ = tensors
    targets = drawn(hidden @ weight[:V].T, 10, seed=1)
    loss, _ = head_loss(hidden.float(), weight.float(), targets, form=FORM, weights=LossWeights(forward_kl=1))
    assert abs(float(loss)) / N < 1e-6
