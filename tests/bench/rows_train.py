"""Rows of the training engine, with their goals."""

from __future__ import annotations

from tests.bench.records import Declared

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
"""Losses that are 0 where the student is the teacher."""
LOSSES = (*DIVERGENCES, "ce", "mixed", "tempered", "entropy_weighted", "sampled", "softcapped", "everything")
"""Which losses are compared with a dense float64 reference."""
WEIGHTS = 1e-4
"""How far rounding may move final weights apart, as a part of the way that training took them."""
SEEDS = 3
"""Of the comparison of a distilled student with its twin."""


MIXES = {
    "": "0.7 forward KL + 0.3 CE on 64 entries",
    ".divergences": "0.5 reverse KL + 0.5 JSD + 0.2 CE on 64 entries at T = 2, weighed by the teacher's entropy",
    ".sampled": "0.7 forward KL + 0.3 CE on 50 draws",
}
"""Losses whose training must not change with how it runs, by the end of their rows' names."""
INVARIANCES = {
    "micro_batch": "over micro-batches",
    "accumulation": "between one forward pass a step and one document a pass",
    "packing": "between packed rows and one document a row",
    "world_size": "between one process and two",
    "zero_stage": "over ZeRO 0, 1, 2 and 3 in two processes",
}


def _row(name: str, unit: str, says: str, **goal: object) -> Declared:
    return Declared.model_validate({"name": f"train.{name}", "unit": unit, "says": says, **goal})


_EXACT = [
    *(
        _row(
            f"exact.{what}.{loss}",
            "",
            f"Relative error of the fused {what} in float32 against a dense float64 reference.",
            goal=1e-5,
        )
        for loss in LOSSES
        for what in ("value", "gradient")
    ),
    _row("gradcheck_failures", "losses", "Losses whose gradient differs from finite differences in float64.", goal=0),
    *(
        _row(f"at_teacher.{loss}{suffix}", "nat", says, goal=1e-6)
        for suffix, says in (
            ("", "Largest size of the loss a position at student = teacher, most of the mass outside what is kept."),
            (".tempered", "The same at T = 2 from the entries stored at 1, with normaliser and tail stored at 2."),
        )
        for loss in DIVERGENCES
    ),
    _row("invariance.chunk", "", "Largest relative change of loss and gradients over chunk sizes.", goal=1e-5),
    *(
        _row(
            f"invariance.{what}{mix}",
            "",
            f"Largest relative change of a training's losses and gradient norms {over}; {loss}.",
            goal=1e-5,
        )
        for what, over in INVARIANCES.items()
        for mix, loss in MIXES.items()
    ),
    *(
        _row(
            f"invariance.{what}.weights",
            "",
            f"Largest distance of the final weights {over}, over the way that training took them; all of these losses.",
            goal=WEIGHTS,
        )
        for what, over in INVARIANCES.items()
    ),
    # The passes are the same bits. float32 sums of their gradients differ in order, which turns a weight's rounding to
    # bfloat16 (2^-8 of it) only where it was at a tie.
    _row(
        "invariance.world_size_bf16",
        "",
        "Largest relative change of losses and gradient norms in bfloat16 between one process and two, ZeRO 0 to 3.",
        goal=1e-5,
    ),
    _row(
        "invariance.world_size_bf16.weights",
        "",
        "Largest distance of the final weights between these, over the way that training took them.",
        goal=WEIGHTS,
    ),
]

_SPEED = [
    _row("loss.over_ce.fp32", "", "CPU time of fused CE + forward KL over fused CE, K = 64.", goal=1.03),
    _row("loss.over_products.fp32", "", "The same over its three matrix products.", goal=1.15),
    _row("loss.over_products.bf16", "", "The same over its three matrix products.", goal=1.35),
    _row("loss.over_unfused_ce.fp32", "", "The same over the plain cross-entropy of all logits, backward.", goal=1.0),
    _row("loss.torchtune_over", "", "torchtune's KD loss over the same, CPU time.", goal=1.25, comparator=">="),
    _row("loss.trl_over", "", "TRL's distillation loss over the same, CPU time.", goal=1.25, comparator=">="),
    *(
        _row(
            f"loss.peak_above.{tokens}k",
            "MB",
            "Peak memory above inputs, weights, dX, float32 dW and one float32 chunk of logits.",
            goal=100,
        )
        for tokens in (4, 8, 16)
    ),
    _row("loss.peak_spread", "MB", "The largest of these less the smallest: it is flat in the positions.", goal=32),
]

_STEP = [
    _row("step.stored_logits_over_ce", "", "CPU time of a step on stored logits over the one with CE only.", goal=1.05),
    _row("step.data_wait", "", "Part of the steps' time spent waiting for data.", goal=0.01),
]

_ELASTIC = [
    _row("kills", "", "Trainings in two processes, ZeRO-3, of which one was killed with -9.", goal=10, comparator=">="),
    _row("kills_not_resumed", "", "Of these, launches that began anew although a checkpoint stood.", goal=0),
    _row("kills_changed", "", "Of these, trainings whose weights or log differ from the undisturbed one's.", goal=0),
    *(
        row
        for change, where in (("2_to_1", "one process"), ("1_to_2", "two processes"))
        for row in (
            _row(
                f"resume.{change}", "", f"Largest relative change of the losses after resuming on {where}.", goal=1e-4
            ),
            _row(
                f"resume.{change}.weights",
                "",
                "Distance of the final weights, over the way that training took them.",
                goal=WEIGHTS,
            ),
        )
    ),
]

_QUALITY = [
    _row("quality.bits_per_byte.student", "bit", "Of the distilled students on the test split."),
    _row("quality.bits_per_byte.twin", "bit", "Of their twins."),
    _row("quality.bits_per_byte.teacher", "bit", "Of the teacher."),
    _row("quality.bits_per_byte.gain", "bit", "Twin less student, mean over the seeds."),
    _row("quality.bits_per_byte.gain_z", "", "That over its standard error.", goal=2, comparator=">="),
    _row("quality.accuracy.student", "", "Of the distilled students on the task's test items."),
    _row("quality.accuracy.twin", "", "Of their twins."),
    _row("quality.accuracy.teacher", "", "Of the teacher."),
    _row("quality.accuracy.gain", "", "Student less twin, mean over the seeds."),
    _row("quality.accuracy.gain_z", "", "That over its standard error.", goal=2, comparator=">="),
    _row("quality.seeds", "", "Pairs of student and twin.", goal=SEEDS, comparator=">="),
    _row("quality.minutes", "min", "Of the trainings of all pairs, on two cores.", goal=40),
]

TRAIN = (*_EXACT, *_SPEED, *_STEP, *_ELASTIC, *_QUALITY)
