"""What a token takes on disk and what the codec and each support do to it.

Error of a codec, at one position: the KL from the teacher's full distribution to the decoded one, less the same to the
truncation that was encoded. Both spread the tail over the same ids in the same way (the training loss gives it the
student's own shape), so what remains is Σ_kept p (log p − log p̂) + p_tail (log p_tail − log p̂_tail), with p̂ scaled
to one as the loss scales it and p from the fp32 entries and the exact tail.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.artifacts.store import open_store
from tasks.logits.positions import Positions
from tests.bench.angles import Angles, FullGradient
from tests.bench.entropy import entropy_bound
from tests.bench.real_logits import real_logits
from tests.bench.records import Measured, Measurement
from tests.bench.stores import (
    captured_mass,
    data_said,
    decoded_positions,
    open_reader,
    prior_said,
    read_all,
    write_store,
)
from tests.bench.supports import ADAPTIVE, CURVE, SAMPLED, TOP_64, Settings, positions_of
from tests.bench.teachers import VOCABULARIES


class Stored:
    """The test split with one support, written, committed and read back."""

    def __init__(self, vocabulary: str, settings: Settings) -> None:
        self.original = positions_of(real_logits(vocabulary, "test"), settings)
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(str(Path(folder, "store")))
            manifest = write_store(store, "artifacts/dump_logits/bench", Path(folder, "draft"), vocabulary, settings)
            reader = open_reader(store, "artifacts/dump_logits/bench")
            self.decoded = decoded_positions(read_all(reader))
        self.num_tokens = real_logits(vocabulary, "test").num_tokens
        self.by_array: dict[str, int] = {}
        for entry in manifest.objects:
            shard, _, rest = entry.name.partition("/")
            if shard.startswith("train-"):
                name = rest.partition("/")[0]
                self.by_array[name] = self.by_array.get(name, 0) + entry.size

    @property
    def bytes_per_token(self) -> float:
        return sum(self.by_array.values()) / self.num_tokens

    @property
    def parts(self) -> str:
        """The arrays that take more than 0.05 bytes a token."""
        sizes = sorted(self.by_array.items(), key=lambda item: -item[1])
        shares = [f"{name} {size / self.num_tokens:.2f}" for name, size in sizes if size / self.num_tokens > 0.05]
        return "of these " + ", ".join(shares)


def added_kl(original: Positions, decoded: Positions) -> npt.NDArray[np.float64]:
    """The codec's error at each position, in nats."""
    true_PB = _buckets(original)
    decoded_PB = _buckets(decoded)
    decoded_PB = decoded_PB - np.log(np.exp(decoded_PB).sum(1, keepdims=True))
    mass_PB = np.exp(true_PB)
    with np.errstate(invalid="ignore"):
        error_PB = np.where(mass_PB > 0, mass_PB * (true_PB - decoded_PB), 0)
    error_P: npt.NDArray[np.float64] = error_PB.sum(1)
    return error_P


def _buckets(positions: Positions) -> npt.NDArray[np.float64]:
    """Entries and tail, by id, since a codec may order equals anew."""
    order_PK = np.argsort(positions.topk_ids_PK, axis=1, kind="stable")
    values_PK = np.take_along_axis(positions.topk_logprobs_PK, order_PK, 1)
    return np.concatenate((values_PK, positions.tail_logprob_P[:, None]), 1).astype(np.float64)


def require_same_ids(original: Positions, decoded: Positions) -> None:
    """An error of values alone is meant only if the ids are the same sets, and gold is the same number."""
    if not np.array_equal(np.sort(original.topk_ids_PK, 1), np.sort(decoded.topk_ids_PK, 1)):
        raise AssertionError("the decoded ids are not the ids that were encoded")


@lru_cache(maxsize=1)
def _gradient(vocabulary: str) -> FullGradient:
    return FullGradient(vocabulary)


_ANGLES: dict[str, Angles] = {}
"""Those that were taken, by vocabulary and support: the curve has points that have rows of their own."""


def _angle(vocabulary: str, settings: Settings, decoded: Positions) -> tuple[float, str]:
    key = f"{vocabulary} {settings}"
    if key not in _ANGLES:
        _ANGLES[key] = _gradient(vocabulary).angles(decoded)
    return _ANGLES[key].weight, _ANGLES[key].said


def _top64(vocabulary: str) -> Iterator[Measured]:
    stored = Stored(vocabulary, TOP_64)
    require_same_ids(stored.original, stored.decoded)
    captured = captured_mass(stored.original)
    data = f"{data_said(vocabulary)}, captured mass {captured:.4f}"
    error_P = added_kl(stored.original, stored.decoded)
    mean = float(error_P.mean())
    yield Measured(
        f"store.bytes_per_token.top64.{vocabulary}",
        stored.bytes_per_token,
        f"{stored.parts}; {data}; {prior_said(vocabulary)}",
    )
    bound = entropy_bound(stored.original, mean)
    yield Measured(f"store.entropy_bound.top64.{vocabulary}", bound.bytes_per_position, f"{bound.said}; {data}")
    yield Measured(f"store.captured_mass.top64.{vocabulary}", captured, data)
    yield Measured(f"store.added_kl.top64.{vocabulary}", mean, f"{len(error_P)} positions; {data}")
    yield Measured(f"store.added_kl_p999.top64.{vocabulary}", float(np.quantile(error_P, 0.999)), data)
    yield Measured(f"store.added_kl_max.top64.{vocabulary}", float(error_P.max()), data)
    angle, said = _angle(vocabulary, TOP_64, stored.decoded)
    yield Measured(f"store.angle_degrees.top64.{vocabulary}", angle, f"{said}; {data}")


def _adaptive(vocabulary: str) -> Iterator[Measured]:
    stored = Stored(vocabulary, ADAPTIVE)
    require_same_ids(stored.original, stored.decoded)
    kept = float((stored.original.topk_ids_PK >= 0).sum(1).mean())
    captured = captured_mass(stored.original)
    fixed = captured_mass(positions_of(real_logits(vocabulary, "test"), TOP_64))
    data = (
        f"{ADAPTIVE}, {kept:.1f} entries a position; {data_said(vocabulary)}, captured mass {captured:.4f}, "
        f"of top 64 {fixed:.4f}"
    )
    error = float(added_kl(stored.original, stored.decoded).mean())
    yield Measured(
        f"store.adaptive.bytes_per_token.{vocabulary}",
        stored.bytes_per_token,
        f"{stored.parts}; added KL {error:.2g}; {data}; {prior_said(vocabulary)}",
    )
    yield Measured(f"store.adaptive.tail_mass_over_top64.{vocabulary}", (1 - captured) / (1 - fixed), data)
    angle, said = _angle(vocabulary, ADAPTIVE, stored.decoded)
    yield Measured(f"store.adaptive.angle_degrees.{vocabulary}", angle, f"{said}; {data}")


def _sampled(vocabulary: str) -> Iterator[Measured]:
    stored = Stored(vocabulary, SAMPLED)
    require_same_ids(stored.original, stored.decoded)
    if int(stored.decoded.counts_PK.sum()) != SAMPLED["num_draws"] * len(stored.decoded):
        raise AssertionError(f"the decoded counts do not add up to {SAMPLED['num_draws']} draws a position")
    kept = float((stored.original.topk_ids_PK >= 0).sum(1).mean())
    captured = captured_mass(stored.original)
    data = f"{SAMPLED}, {kept:.1f} different ids a position; {data_said(vocabulary)}, captured mass {captured:.4f}"
    yield Measured(
        f"store.sampled.bytes_per_token.{vocabulary}",
        stored.bytes_per_token,
        f"{stored.parts}; {data}; {prior_said(vocabulary)}",
    )
    angle, said = _angle(vocabulary, SAMPLED, stored.decoded)
    yield Measured(f"store.sampled.angle_degrees.{vocabulary}", angle, f"{said}; {data}")


def _curve(vocabulary: str) -> Iterator[Measured]:
    for name, settings in CURVE.items():
        stored = Stored(vocabulary, settings)
        captured = captured_mass(stored.original)
        data = f"{settings}; {data_said(vocabulary)}, captured mass {captured:.4f}"
        yield Measured(f"store.curve.{name}.bytes_per_token.{vocabulary}", stored.bytes_per_token, data)
        yield Measured(f"store.curve.{name}.captured_mass.{vocabulary}", captured, data)
        angle, said = _angle(vocabulary, settings, stored.decoded)
        yield Measured(f"store.curve.{name}.angle_degrees.{vocabulary}", angle, f"{said}; {data}")


_ROWS = {
    _top64: "store.*.top64.{}",
    _adaptive: "store.adaptive.*.{}",
    _sampled: "store.sampled.*.{}",
    _curve: "store.curve.*.{}",
}

# One vocabulary after the other: the full gradient that is kept takes 0.7 GB at 152k ids.
MEASUREMENTS = [
    Measurement(
        f"store_size{function.__name__} {vocabulary}", partial(function, vocabulary), (rows.format(vocabulary),)
    )
    for vocabulary in VOCABULARIES
    for function, rows in _ROWS.items()
]
