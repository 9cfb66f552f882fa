"""The fused loss against a dense float64 formula written from the definition, with autograd's gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.training import losses
from tasks.training.losses import LossWeights, Targets, head_loss

N, D, V, ROWS, K = 23, 12, 57, 64, 5
NUM_EMPTY = (0, 2, 4)
"""Empty slots of the rows 0, 1, 2 of the fixture; all other rows are full."""


def teacher(logits_NV: Tensor, num_kept: int, temperature: float = 1.0) -> Targets:
    """Truncates dense teacher logits; the first rows keep fewer."""
    logprobs_NV = torch.log_softmax(logits_NV / temperature, 1)
    ids_NK = logits_NV.topk(num_kept, 1).indices
    for row, empty in enumerate(NUM_EMPTY):
        if empty and empty < num_kept:
            ids_NK[row, num_kept - empty :] = -1
    kept_NK = ids_NK >= 0
    values_NK = logprobs_NV.gather(1, ids_NK.clamp(min=0)).masked_fill(~kept_NK, -torch.inf)
    rest_NV = logprobs_NV.clone()
    for row in range(len(ids_NK)):
        rest_NV[row, ids_NK[row][kept_NK[row]]] = -torch.inf
    gold_N = torch.arange(len(ids_NK)) % logits_NV.shape[1]
    return Targets(gold_N, ids_NK, values_NK.float(), rest_NV.logsumexp(1).float())


def dense(hidden_ND: Tensor, weight_RD: Tensor, targets: Targets, weights: LossWeights) -> Tensor:
    """The definition, one position at a time in float64."""
    total = hidden_ND.new_zeros(())
    for row in range(len(hidden_ND)):
        logits_V = weight_RD[:V] @ hidden_ND[row]
        ids = [int(token) for token in targets.topk_ids_NK[row] if token >= 0]
        p = torch.tensor(
            [float(value) for value in targets.topk_logprobs_NK[row] if value > -torch.inf]
            + [float(targets.tail_logprob_N[row])],
            dtype=torch.float64,
        ).exp()
        p = p / p.sum()
        log_p = p.log()
        if targets.draws_NK is not None:
            draws = [float(count) for count in targets.draws_NK[row] if count > 0]
            p = torch.tensor([*draws, 0.0], dtype=torch.float64) / sum(draws)
        q_V = torch.softmax(logits_V / weights.temperature, 0)
        outside = torch.ones(V, dtype=torch.bool)
        outside[ids] = False
        q = torch.cat((q_V[ids], q_V[outside].sum()[None]))
        kl = sum(p[i] * (log_p[i] - q[i].log()) for i in range(len(p)) if p[i] > 0)
        ce = -torch.log_softmax(logits_V, 0)[targets.gold_N[row]]
        total = total + weights.kd * weights.temperature**2 * kl + weights.ce * ce
    return total


def drawn(logits_NV: Tensor, num_draws: int, seed: int) -> Targets:
    """Draws from the dense teacher, with its log-probabilities at the entries that came."""
    logprobs_NV = torch.log_softmax(logits_NV, 1)
    generator = torch.Generator().manual_seed(seed)
    ids_NC = torch.multinomial(logprobs_NV.exp(), num_draws, replacement=True, generator=generator)
    counts_NV = torch.zeros_like(logits_NV).scatter_add_(1, ids_NC, torch.ones_like(ids_NC, dtype=logits_NV.dtype))
    came_NV = counts_NV > 0
    order_NV = logprobs_NV.masked_fill(~came_NV, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :num_draws]
    came_NK = came_NV.gather(1, order_NV)
    values_NK = logprobs_NV.gather(1, order_NV).masked_fill(~came_NK, -torch.inf)
    tail_N = logprobs_NV.masked_fill(came_NV, -torch.inf).logsumexp(1)
    gold_N = torch.arange(len(ids_NC)) % logits_NV.shape[1]
    counts_NK = counts_NV.gather(1, order_NV)
    return Targets(gold_N, order_NV.masked_fill(~came_NK, -1), values_NK.float(), tail_N.float(), counts_NK.float())


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    hidden_ND = torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight_RD = torch.randn(ROWS, D, generator=generator, dtype=torch.float64)
    teacher_NV = 3 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    return hidden_ND, weight_RD, teacher_NV


def gradients(function, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight)
    # A factor other than 1, since backward has to scale what forward prepared.
    (0.37 * loss).backward()
    return loss.detach(), hidden.grad / 0.37, weight.grad / 0.37


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(
    "weights", [LossWeights(1, 0), LossWeights(0, 1), LossWeights(0.7, 0.3), LossWeights(1, 0.5, 2)]
)
def test_equals_the_dense_definition(tensors: tuple[Tensor, Tensor, Tensor], weights: LossWeights) -> None:
    hidden, weight, teacher_logits = tensors
    targets = teacher(teacher_logits, K, weights.temperature)
    expected = gradients(lambda h, w: dense(h, w, targets, weights), hidden, weight)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        for chunk in (1, 7, N, 1000):
            found = gradients(
                lambda h, w, c=chunk: head_loss(h, w, targets, num_real=V, weights=weights, chunk_tokens=c)[0],
                hidden.to(dtype),
                weight.to(dtype),
            )
            for name, value, reference in zip(("loss", "dX", "dW"), found, expected, strict=True):
                assert value.dtype == dtype
                assert relative(value, reference) <= tolerance, (name, dtype, chunk)
            assert found[2][V:].abs().max() == 0, "padding rows take no part"


def test_gradcheck(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, teacher_logits = tensors
    for weights in (LossWeights(0.6, 0.4), LossWeights(0.6, 0.4, 1.7)):
        targets = teacher(teacher_logits[:4, :17], K, weights.temperature)
        assert torch.autograd.gradcheck(
            lambda h, w, t=targets, lw=weights: head_loss(h, w, t, num_real=17, weights=lw, chunk_tokens=3)[0],
            (hidden[:4].clone().requires_grad_(), weight[:19].clone().requires_grad_()),
        )


def test_gradient_outside_the_kept_entries(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """With an identity head dX is the gradient by the logits: q_j (1 − p_tail / q_tail) off the top K."""
    _, _, teacher_logits = tensors
    logits = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    targets = teacher(teacher_logits, K)
    eye = torch.eye(V, dtype=torch.float64)
    _, grad, _ = gradients(lambda h, w: head_loss(h, w, targets, num_real=V, weights=LossWeights(1, 0))[0], logits, eye)
    q = torch.softmax(logits, 1)
    outside = torch.ones(N, V, dtype=torch.bool)
    for row in range(N):
        outside[row, [int(i) for i in targets.topk_ids_NK[row] if i >= 0]] = False
    q_tail = torch.where(outside, q, 0).sum(1, keepdim=True)
    expected = q * (1 - targets.tail_logprob_N[:, None].double().exp() / q_tail)
    assert torch.allclose(grad[outside], expected[outside], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("num_kept", [1, K, V])
def test_kl_is_zero_at_the_teacher_and_never_negative(tensors: tuple[Tensor, Tensor, Tensor], num_kept: int) -> None:
    hidden, weight, _ = tensors
    logits = hidden @ weight[:V].T
    targets = teacher(logits, num_kept)
    loss, _ = head_loss(hidden.float(), weight.float(), targets, num_real=V, weights=LossWeights(1, 0))
    assert abs(float(loss)) / N < 1e-6
    for scale in (0.0, 0.999, 1.001, 30.0):
        loss, (kl, _) = head_loss(
            scale * hidden.float(), weight.float(), targets, num_real=V, weights=LossWeights(1, 0)
        )
        assert loss >= -1e-6 * N
        assert float(kl) == pytest.approx(float(loss), rel=1e-6, abs=1e-6)


def test_stored_rounding_cannot_make_it_negative(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """Rounded entries sum to more or less than one; a KL of such masses would go below zero near the teacher."""
    hidden, weight, _ = tensors
    exact = teacher(hidden @ weight[:V].T, K)
    for shift in (-3e-3, 3e-3):
        rounded = Targets(exact.gold_N, exact.topk_ids_NK, exact.topk_logprobs_NK + shift, exact.tail_logprob_N + shift)
        loss, _ = head_loss(hidden.float(), weight.float(), rounded, num_real=V, weights=LossWeights(1, 0))
        assert abs(float(loss)) / N < 1e-6


def test_finite_at_the_edges(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, teacher_logits = tensors
    full = teacher(teacher_logits, K)
    no_tail = Targets(full.gold_N, full.topk_ids_NK, full.topk_logprobs_NK, torch.full((N,), -torch.inf))
    everything = teacher(teacher_logits, V)
    leftover = Targets(*everything.tensors()[:3], torch.full((N,), -16.0))
    for targets in (no_tail, everything, leftover, Targets.of_gold(full.gold_N)):
        for scale in (1.0, 200.0):
            parts = gradients(
                lambda h, w, t=targets: head_loss(h, w, t, num_real=V, weights=LossWeights(0.5, 0.5))[0],
                scale * hidden.float(),
                weight.float(),
            )
            assert all(torch.isfinite(part).all() for part in parts)


def test_without_a_teacher_it_is_cross_entropy(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, _ = tensors
    gold = torch.arange(N)
    loss, (kl, ce) = head_loss(hidden, weight, Targets.of_gold(gold), num_real=V, weights=LossWeights(0, 1))
    expected = torch.nn.functional.cross_entropy(hidden @ weight[:V].T, gold, reduction="sum")
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    assert float(ce) == pytest.approx(float(expected), rel=1e-12)
    assert abs(float(kl)) < 1e-12


def test_without_grad_mode_no_gradient_is_computed(
    tensors: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head's weight asks for a gradient even where nobody will run backward, as in a held-out batch."""
    hidden, weight, teacher_logits = tensors
    targets = teacher(teacher_logits, K)
    weight.requires_grad_()
    asked: list[bool] = []
    real = losses._chunk_loss

    def counted(*args: Any, needs_grad: bool) -> Any:
        asked.append(needs_grad)
        return real(*args, needs_grad=needs_grad)

    monkeypatch.setattr(losses, "_chunk_loss", counted)
    weights = LossWeights(0.5, 0.5)
    with_grad, parts = head_loss(hidden, weight, targets, num_real=V, weights=weights)
    with torch.no_grad():
        without, same_parts = head_loss(hidden, weight, targets, num_real=V, weights=weights)
    assert asked == [True, False]
    assert with_grad.requires_grad
    assert not without.requires_grad
    assert torch.equal(with_grad, without)
    assert torch.equal(parts, same_parts)


def test_no_target_gives_zero_with_a_graph(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, teacher_logits = tensors
    targets = Targets(*(part[:0] for part in teacher(teacher_logits, K).tensors()))
    parts = gradients(
        lambda h, w: head_loss(h, w, targets, num_real=V, weights=LossWeights(1, 1))[0],
        hidden[:0].float(),
        weight.float(),
    )
    assert float(parts[0]) == 0
    assert parts[1].shape == (0, D)
    assert parts[2].abs().max() == 0


def test_bfloat16_accumulates_in_float32(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """bf16 factors, fp32 logits: nearer to the definition on the rounded factors than bf16 logits could be."""
    hidden, weight, teacher_logits = (tensor.bfloat16() for tensor in tensors)
    targets = teacher(teacher_logits.double(), K)
    weights = LossWeights(1, 0)
    expected = gradients(lambda h, w: dense(h, w, targets, weights), hidden.double(), weight.double())
    found = gradients(
        lambda h, w: head_loss(h, w, targets, num_real=V, weights=weights, chunk_tokens=4)[0], hidden, weight
    )
    assert found[0].dtype == torch.float32
    assert relative(found[0], expected[0]) < 1e-6
    assert found[2].dtype == torch.bfloat16
    assert relative(found[2], expected[2]) < 2**-8


def test_draws_weigh_the_loss_and_its_gradient_is_that_of_the_dense_formula(
    tensors: tuple[Tensor, Tensor, Tensor],
) -> None:
    hidden, weight, teacher_logits = tensors
    targets = drawn(teacher_logits, 12, seed=3)
    weights = LossWeights(0.7, 0.3)
    for chunk in (4, N):
        found = gradients(
            lambda h, w, c=chunk: head_loss(h, w, targets, num_real=V, weights=weights, chunk_tokens=c)[0],
            hidden,
            weight,
        )
        expected = gradients(lambda h, w: dense(h, w, targets, weights), hidden, weight)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_the_mean_gradient_over_draws_is_that_of_the_whole_distribution(
    tensors: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Unbiased, where a renormalised truncation never is: within four standard errors over 400 seeds."""
    hidden, weight, teacher_logits = tensors
    kd = LossWeights(1.0, 0.0)

    def by_hidden(targets: Targets) -> Tensor:
        return gradients(lambda h, w: head_loss(h, w, targets, num_real=V, weights=kd)[0], hidden, weight)[1]

    whole = by_hidden(teacher(teacher_logits, V))[3:]
    samples = torch.stack([by_hidden(drawn(teacher_logits, 20, seed)) for seed in range(400)])[:, 3:]
    error = (samples.mean(0) - whole).abs()
    # 240 numbers: the largest of as many normal deviates is about 3; five standard errors are never reached by chance.
    assert (error <= 5 * samples.std(0) / 400**0.5).all()


def test_draws_from_the_student_itself_leave_no_loss(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, _ = tensors
    targets = drawn(hidden @ weight[:V].T, 10, seed=1)
    loss, _ = head_loss(hidden.float(), weight.float(), targets, num_real=V, weights=LossWeights(1, 0))
    assert abs(float(loss)) / N < 1e-6
