"""Every row of the bench, with its goal. A row that no measurement gives a value is not ok."""

from __future__ import annotations

from tests.bench.records import Declared
from tests.bench.rows_gpu import GPU
from tests.bench.rows_ops import OPS
from tests.bench.rows_plan import PLAN
from tests.bench.rows_surgery import SURGERY
from tests.bench.rows_train import TRAIN
from tests.bench.supports import CURVE
from tests.bench.teachers import VOCABULARIES


def _store(vocabulary: str) -> list[Declared]:
    max_bytes = {"49k": 110.0, "152k": 122.0}[vocabulary]

    def row(what: str, unit: str, says: str, **goal: object) -> Declared:
        return Declared.model_validate({"name": f"store.{what}.{vocabulary}", "unit": unit, "says": says, **goal})

    return [
        row("bytes_per_token.top64", "B", "All objects of a shard over its tokens, 64 entries kept.", goal=max_bytes),
        row("entropy_bound.top64", "B", "Order-0 entropy of the same ids and values, at the same added error."),
        row("captured_mass.top64", "", "Mean mass of the 64 kept entries."),
        row("added_kl.top64", "nat", "Mean KL that the codec adds to the truncation.", goal=2.5e-4),
        row("added_kl_p999.top64", "nat", "The same at the 99.9th percentile of the positions."),
        row("added_kl_max.top64", "nat", "The same at the worst position."),
        row("angle_degrees.top64", "°", "Angle of the head's gradient to the one of the full distribution."),
        row("adaptive.bytes_per_token", "B", "The default adaptive support.", goal=80.0),
        row("adaptive.tail_mass_over_top64", "", "Mean tail mass over the one of 64 kept entries.", goal=1.0),
        row("adaptive.angle_degrees", "°", "Angle of the head's gradient to the one of the full distribution."),
        row("sampled.bytes_per_token", "B", "50 draws.", goal=36.0),
        row("sampled.angle_degrees", "°", "Angle of the head's gradient to the one of the full distribution."),
        *(
            row(f"curve.{name}.{what}", unit, says)
            for name in CURVE
            for what, unit, says in (
                ("bytes_per_token", "B", "All objects of a shard over its tokens."),
                ("captured_mass", "", "Mean mass of the kept or drawn entries."),
                ("angle_degrees", "°", "Angle of the head's gradient to the one of the full distribution."),
            )
        ),
        row("encode_tokens_per_core_second", "1/s", "Writing a shard.", goal=250e3, comparator=">="),
        row("decode_sequential", "1/s", "A core reads all rows in order.", goal=1e6, comparator=">="),
        row("decode_shuffled", "1/s", "A core reads all rows in random order.", goal=500e3, comparator=">="),
        row("encode_tokens_per_core_second_short", "1/s", "The same with documents of 900 tokens."),
        row("decode_sequential_short", "1/s", "The same with documents of 900 tokens."),
        row("decode_shuffled_short", "1/s", "The same with documents of 900 tokens."),
    ]


FLAT = 1.15
"""A time or a memory per token is flat when the larger store costs at most 15 % more: repetitions differ by 10 %."""

_STORE_ANYWHERE = [
    Declared(
        name="store.s3_requests_per_document",
        unit="",
        goal=2,
        says="Most requests that the first document read from an open shard took.",
    ),
    Declared(
        name="store.s3_requests_index_cached",
        unit="",
        goal=1,
        says="Most requests that a later document of the same shard took.",
    ),
    Declared(
        name="store.s3_bytes_over_needed",
        unit="",
        goal=1.1,
        says="Bytes received for every document once, in random order, over the bytes of the arrays that hold them.",
    ),
    Declared(name="store.flat_write_1e5_1e7", unit="", goal=FLAT, says="CPU time a token to write, 10^7 over 10^5."),
    Declared(name="store.flat_read_1e5_1e7", unit="", goal=FLAT, says="CPU time a token to read, 10^7 over 10^5."),
    Declared(name="store.flat_write_memory_1e5_1e7", unit="", goal=FLAT, says="Peak memory to write, 10^7 over 10^5."),
    Declared(name="store.flat_read_memory_1e5_1e7", unit="", goal=FLAT, says="Peak memory to read, 10^7 over 10^5."),
]

_DUMP = [
    *(
        Declared(
            name=f"dump.over_forward.{dtype}.{vocabulary}",
            unit="",
            goal=goal,
            says="CPU time of a dumped shard over the teacher's forward passes with logits on the same batches.",
        )
        for dtype, goal in (("fp32", 1.05), ("bf16", 1.15))
        for vocabulary in VOCABULARIES
    ),
    *(
        Declared(
            name=f"dump.peak_memory_above_model.{dtype}.{vocabulary}",
            unit="MB",
            goal=200,
            says="Peak resident memory of a dump, less the loaded teacher's and one chunk of float32 logits.",
        )
        for dtype in ("fp32", "bf16")
        for vocabulary in VOCABULARIES
    ),
    Declared(name="dump.padding", unit="", goal=0.05, says="Share of padding in the tokens that the teacher computes."),
    Declared(name="dump.kills", unit="", goal=20, comparator=">=", says="Dumps killed with -9 at random moments."),
    Declared(
        name="dump.kills_bit_identical",
        unit="objects",
        goal=0,
        says="Objects of the finished stores that differ from the undisturbed one's.",
    ),
    Declared(name="dump.kills_rows_lost", unit="rows", goal=0, says="Rows of the corpus that a store lacks."),
    Declared(
        name="dump.kills_shards_written_twice",
        unit="shards",
        goal=0,
        says="Shards that had a receipt and were written again.",
    ),
]

ROWS: tuple[Declared, ...] = (
    *(row for vocabulary in VOCABULARIES for row in _store(vocabulary)),
    *_STORE_ANYWHERE,
    *_DUMP,
    *TRAIN,
    *SURGERY,
    *OPS,
    *PLAN,
    *GPU,
)
