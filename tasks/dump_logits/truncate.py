"""Hidden states to truncated distributions.

Letters: C positions, V vocabulary, K entries that a position has room for, N draws or candidates, M temperatures, T
temperatures with 1 as the first; G, B as in tasks/dump_logits/scan.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tasks.dump_logits.head import Float32Head, Transform
from tasks.dump_logits.largest import largest, lowest_of_largest
from tasks.dump_logits.rounded import NUM_SPARE, RoundedLogits, can_round
from tasks.dump_logits.sampling import drawn
from tasks.dump_logits.scan import GROUP_SIZE, LOG2_E, LOWEST, Groups, Scan
from tasks.logits.positions import Positions
from tasks.logits.schema import AdaptiveSupport, SampledSupport, Support, TopKSupport


@dataclass(frozen=True)
class Entries:
    """Entries of C distributions, by (logit descending, id ascending), and what lies beside them in their groups."""

    ids_CK: Tensor
    """int64; of any value where the logit is -inf."""
    logits_CK: Tensor
    groups_CN: Tensor
    """Groups that hold an entry, and perhaps others; a group may stand here twice."""
    members_CN: Tensor
    """The logits of these groups, each group once."""
    places_CK: Tensor
    """Where the entries are in `members_CN`."""


class Truncation:
    """Truncates chunk after chunk, in memory that is made once."""

    def __init__(
        self,
        head: Float32Head,
        support: Support,
        temperatures: Sequence[float] = (),
        transform: Transform | None = None,
    ) -> None:
        self._head = head
        self._support = support
        self._temperatures = tuple(temperatures)
        self._transform = transform
        self._scan = Scan(head.vocab_size, temperatures)

    @torch.inference_mode()
    def __call__(self, hidden_CD: Tensor, gold_C: Tensor, uniforms_CN: Tensor | None = None) -> Positions:
        """The distributions after C hidden states; `uniforms_CN` in [0, 1), float64, are what `sampled` draws with.

        A position whose logits are not finite has NaN as its first log-probability.
        """
        # Rounding would bias the draws, and a transform would change its bound.
        if (
            not isinstance(self._support, SampledSupport)
            and self._transform is None
            and can_round(self._head, hidden_CD)
        ):
            return self._rounded(hidden_CD, gold_C, self._support)
        return self._exact(hidden_CD, gold_C, uniforms_CN)

    def _exact(self, hidden_CD: Tensor, gold_C: Tensor, uniforms_CN: Tensor | None) -> Positions:
        fill = self._head.fill(hidden_CD, self._transform)
        groups = self._scan(fill, len(hidden_CD), hidden_CD.device)
        return truncated(groups, gold_C, self._support, self._temperatures, uniforms_CN)

    def _rounded(self, hidden_CD: Tensor, gold_C: Tensor, support: TopKSupport | AdaptiveSupport) -> Positions:
        rounded = RoundedLogits(self._head, hidden_CD)
        groups = self._scan(rounded.fill, len(hidden_CD), hidden_CD.device)
        candidates = likeliest(groups, support.width + NUM_SPARE)
        logits_CN = rounded.exact(candidates.ids_CK)
        proven_C = rounded.proven(candidates.logits_CK, logits_CN, support.width)
        # Ids ascending, then stable by the exact logit.
        _, order_CN = candidates.ids_CK.sort(dim=1)
        logits_CK, by_logit_CN = logits_CN.gather(1, order_CN).sort(dim=1, descending=True, stable=True)
        chosen_CK = order_CN.gather(1, by_logit_CN)[:, : support.width]
        entries = Entries(
            candidates.ids_CK.gather(1, chosen_CK),
            logits_CK[:, : support.width],
            candidates.groups_CN,
            candidates.members_CN,
            candidates.places_CK.gather(1, chosen_CK),
        )
        gold_logit_C = rounded.exact(gold_C[:, None])[:, 0]
        result = positions(groups, limited(groups, entries, support), gold_logit_C, self._temperatures)
        if len(doubtful := torch.nonzero(~proven_C).flatten()):
            exact = self._exact(hidden_CD[doubtful], gold_C[doubtful], None)
            for array, values in zip(result.arrays(), exact.arrays(), strict=True):
                array[doubtful.numpy()] = values
        return result


def truncated(
    groups: Groups, gold_C: Tensor, support: Support, temperatures: Sequence[float], uniforms_CN: Tensor | None
) -> Positions:
    """Entries by the support, and what they leave out, of scanned distributions."""
    gold_logit_C = groups.logits_at(gold_C[:, None])[:, 0]
    if isinstance(support, SampledSupport):
        if uniforms_CN is None:
            raise TypeError("sampled support needs uniforms_CN")
        entries, counts_CK = sampled(groups, uniforms_CN)
        return positions(groups, entries, gold_logit_C, temperatures, counts_CK)
    return positions(groups, limited(groups, likeliest(groups, support.width), support), gold_logit_C, temperatures)


def likeliest(groups: Groups, num_kept: int) -> Entries:
    """The K largest logits of each position, exactly.

    An id of any but the first K groups by (maximum descending, group ascending) has K ids before it: those of the
    maxima of these groups.
    """
    groups_CN = lowest_of_largest(groups.max_CG, min(num_kept, groups.max_CG.shape[1]))
    members_CN = groups.members(groups_CN).flatten(1)
    # Groups, and so members, are in ascending order of ids: a place compares as its id.
    logits_CK, places_CK = largest(members_CN, min(num_kept, members_CN.shape[1]))
    ids_CK = groups_CN.gather(1, places_CK // GROUP_SIZE) * GROUP_SIZE + places_CK % GROUP_SIZE
    missing = num_kept - ids_CK.shape[1]
    if missing:
        ids_CK, places_CK = (
            torch.cat((tensor, tensor[:, -1:].expand(-1, missing)), 1) for tensor in (ids_CK, places_CK)
        )
        logits_CK = functional.pad(logits_CK, (0, missing), value=-torch.inf)
    return Entries(ids_CK, logits_CK, groups_CN, members_CN, places_CK)


def limited(groups: Groups, entries: Entries, support: TopKSupport | AdaptiveSupport) -> Entries:
    """Leaves of each position's likeliest entries as many as the support keeps."""
    if isinstance(support, TopKSupport):
        return entries
    probabilities_CK = (entries.logits_CK.double() - groups.lse()[:, None]).exp()
    num_kept_C = kept_counts(probabilities_CK, support)
    left_out_CK = torch.arange(support.max_kept, device=num_kept_C.device) >= num_kept_C[:, None]
    return Entries(
        entries.ids_CK,
        entries.logits_CK.masked_fill(left_out_CK, -torch.inf),
        entries.groups_CN,
        entries.members_CN,
        # The first entry is always kept.
        torch.where(left_out_CK, entries.places_CK[:, :1], entries.places_CK),
    )


def kept_counts(probabilities_CK: Tensor, support: AdaptiveSupport) -> Tensor:
    """How many of each position's likeliest entries, given in descending order, the support keeps (C)."""
    num_kept_C = torch.full_like(probabilities_CK[:, 0], support.max_kept, dtype=torch.int64)
    if support.min_probability is not None:
        num_kept_C = num_kept_C.minimum((probabilities_CK >= support.min_probability).sum(1))
    if support.min_mass is not None:
        before_CK = probabilities_CK.cumsum(1) - probabilities_CK
        num_kept_C = num_kept_C.minimum((before_CK < support.min_mass).sum(1))
    return num_kept_C.clamp(min=support.min_kept)


def sampled(groups: Groups, uniforms_CN: Tensor) -> tuple[Entries, Tensor]:
    """The distinct ids of N draws, and how often each was drawn (0 where there are fewer than N)."""
    ids_CN = drawn(groups, uniforms_CN).sort(dim=1).values
    is_first_CN = functional.pad(ids_CN[:, 1:] != ids_CN[:, :-1], (1, 0), value=True)
    slots_CN = is_first_CN.cumsum(1) - 1
    # Slots without an entry repeat the largest id.
    ids_CK = ids_CN[:, -1:].repeat(1, ids_CN.shape[1]).scatter_(1, slots_CN, ids_CN)
    counts_CK = torch.zeros_like(ids_CN).scatter_add_(1, slots_CN, torch.ones_like(ids_CN))
    groups_CK = ids_CK // GROUP_SIZE
    is_new_CK = functional.pad(groups_CK[:, 1:] != groups_CK[:, :-1], (1, 0), value=True)
    members_CKB = groups.members(groups_CK).masked_fill_(~is_new_CK[:, :, None], -torch.inf)
    first_place_CK = (torch.arange(ids_CK.shape[1], device=ids_CK.device) * is_new_CK).cummax(1).values
    logits_CK = groups.logits_at(ids_CK).masked_fill_(counts_CK == 0, -torch.inf)
    logits_CK, order_CK = logits_CK.sort(dim=1, descending=True, stable=True)
    places_CK = first_place_CK * GROUP_SIZE + ids_CK % GROUP_SIZE
    entries = Entries(
        ids_CK.gather(1, order_CK), logits_CK, groups_CK, members_CKB.flatten(1), places_CK.gather(1, order_CK)
    )
    return entries, counts_CK.gather(1, order_CK)


def positions(
    groups: Groups,
    entries: Entries,
    gold_logit_C: Tensor,
    temperatures: Sequence[float],
    counts_CK: Tensor | None = None,
) -> Positions:
    """Log-probabilities of the entries, of the following token, and of all that is not an entry.

    The tail is a sum over what is no entry, never 1 − Σ kept, and the normaliser is the sum of the two parts: nothing
    cancels, and the stored mass adds up to 1.
    """
    outside_CG = groups.max_CG.scatter(1, entries.groups_CN, -torch.inf)
    beside_CN = entries.members_CN.scatter(1, entries.places_CK, -torch.inf)
    largest_out_C1 = torch.maximum(outside_CG.amax(1), beside_CN.amax(1)).clamp_(min=LOWEST)[:, None]
    outside_CG, beside_CN = outside_CG.sub_(largest_out_C1), beside_CN.sub_(largest_out_C1)
    top_C1 = entries.logits_CK[:, :1].double()
    below_top_CK = entries.logits_CK.double() - top_C1
    largest_out_C, top_C = largest_out_C1[:, 0].double(), top_C1[:, 0]
    lse_TC, tail_TC = [], []
    for scale, sums_CG in zip([1.0, *(1 / temperature for temperature in temperatures)], groups.sums_TCG, strict=True):
        out_C = (outside_CG * (scale * LOG2_E)).exp2_().mul_(sums_CG).sum(1, dtype=torch.float64)
        out_C += (beside_CN * (scale * LOG2_E)).exp2_().sum(1, dtype=torch.float64)
        out_C = out_C.log() + largest_out_C * scale
        kept_C = (below_top_CK * scale).exp().sum(1).log() + top_C * scale
        lse_TC.append(torch.logaddexp(kept_C, out_C))
        tail_TC.append(out_C - lse_TC[-1])
    lse_C = lse_TC[0]
    logprobs_CK = entries.logits_CK.double() - lse_C[:, None]
    tempered_lse_MC = [lse - lse_C * (1 / temp) for lse, temp in zip(lse_TC[1:], temperatures, strict=True)]
    empty_C0 = lse_C.new_empty((len(lse_C), 0))
    numbers = [
        entries.ids_CK.masked_fill(logprobs_CK.isneginf(), -1).int(),
        logprobs_CK.float(),
        tail_TC[0].float(),
        (gold_logit_C.double() - lse_C).float(),
        torch.stack(tempered_lse_MC, 1).float() if tempered_lse_MC else empty_C0.float(),
        torch.stack(tail_TC[1:], 1).float() if tempered_lse_MC else empty_C0.float(),
    ]
    arrays = [tensor.cpu().numpy() for tensor in numbers]
    arrays.append((empty_C0 if counts_CK is None else counts_CK).cpu().numpy().astype(np.uint16))
    return Positions(*arrays)
