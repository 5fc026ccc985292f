"""Hostile bytes for the decoder: whatever they are, it agrees with the definition and stays within its arrays.

    python tests/fuzz/decoder.py [-max_total_time=60]   search, led by coverage (needs `pip install atheris`)
    python tests/fuzz/decoder.py replay                 a fixed set of inputs; prints how they were judged

Coverage tools do not see compiled code, and a compiled access out of bounds need not be noticed. So the decoder's own
source runs in the interpreter here: numba is switched off, the operations of `kernels.bits` are replaced by ones that
check every bound, and so are the arrays. What has not been written is poison, and so is the slack behind the records.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

os.environ["NUMBA_DISABLE_JIT"] = "1"  # read when numba is imported, by the kernels below

REPLAY = sys.argv[1:] == ["replay"]
watched: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
if not REPLAY:
    try:
        import atheris
    except ImportError:
        raise SystemExit("searching needs atheris: pip install atheris") from None
    watched = atheris.instrument_imports(include=["protocol.sparseloco"])

with watched:
    from protocol.errors import Reason, Rejected
    from protocol.run import SparseLoCo
    from protocol.sparseloco.compress import decompress
    from protocol.sparseloco.kernels import bits, cpu, cpu_decode, reference
    from protocol.sparseloco.layout import Layout
    from protocol.sparseloco.plan import Plan, plan_of
    from protocol.sparseloco.records import Codes, Flaw, RecordFormat, pack, unpack

POISON = 0xA5
HEADER_BYTES = 6
KS = (1, 2, 7, 63, 64, 65, 100, 128, 300, 512, 1024, 1365, 2048, 3000, 4095, 4096)
SMALL = 192
"""Parameters with more elements than this only come with k ≤ 128: the interpreter is slow."""


class Guarded(np.ndarray[Any, Any]):
    """An array that raises `IndexError` wherever compiled code would read or write something else: NumPy counts
    negative indices from the end and cuts slices short."""

    def __getitem__(self, key: Any) -> Any:
        self._check(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check(key)
        super().__setitem__(key, value)

    def _check(self, key: Any) -> None:
        for part, size in zip(key if isinstance(key, tuple) else (key,), self.shape, strict=False):
            if isinstance(part, slice):
                within = part == slice(None) or 0 <= part.start <= part.stop <= size
            else:
                within = 0 <= part < size
            if not within:
                raise IndexError(f"{part} is outside an array of {size}")


class Source:
    """What an address stands for: bytes of which the first is at place `start`."""

    def __init__(self, array: Any, start: int = 0) -> None:
        self.array, self.start = guard(array), start

    def read(self, at: Any, size: int) -> bytes:
        place = int(at) - self.start
        return bytes(self.array[place : place + size].tobytes())


def sources(plan: Plan, bodies: Any) -> Any:
    """Bodies without slack, and last records with a slack of poison."""
    last = plan.end(cpu_decode.SLACK_BYTES)
    slack = np.full(cpu_decode.SLACK_BYTES, POISON, np.uint8)
    ends = [Source(np.concatenate([body[last:], slack]), last) for body in bodies]
    return cpu._Sources(([Source(body) for body in bodies], ends, last), ())


def load64(source: Source, at: Any) -> np.uint64:
    return np.uint64(int.from_bytes(source.read(at, 8), "little"))


def load8(source: Source, at: Any) -> np.uint8:
    return np.uint8(source.read(at, 1)[0])


def put_fields(target: Any, index: Any, word: Any, width: Any) -> None:
    width = int(width)
    assert 0 <= width <= 8
    target[int(index) : int(index) + 8] = [int(word) >> width * t & (1 << width) - 1 for t in range(8)]


def not_rising(array: Any, index: Any) -> np.uint64:
    here, following = array[int(index) : int(index) + 64], array[int(index) + 1 : int(index) + 65]
    return np.uint64(sum(int(rises) << i for i, rises in enumerate(here >= following)))


def extract(word: Any, mask: Any) -> np.uint64:
    return np.uint64(bits.extract_bit_by_bit(np.uint64(word), np.uint64(mask)))


def leading_zeros(word: Any) -> int:
    assert word
    return 64 - int(word).bit_length()


def put_ones(target: Any, index: Any, ones_at: Any, base: Any) -> None:
    target[int(index) : int(index) + 8] = base + np.frombuffer(int(ones_at).to_bytes(8, "little"), np.uint8).astype(int)


def put_positions(target: Any, index: Any, places: Any, word: Any, low_width: Any) -> None:
    assert 0 <= low_width <= 8
    steps = np.arange(8)
    high = (places[int(index) : int(index) + 8] - (index + steps)) << low_width
    low_width = int(low_width)
    low = [int(word) >> low_width * t & (1 << low_width) - 1 for t in range(8)]
    target[int(index) : int(index) + 8] = high | np.array(low)


def ones(word: Any) -> int:
    return int(word).bit_count()


def magnitude_bits(value: Any) -> Any:
    return np.float32(value).view(np.int32) & np.int32(0x7FFFFFFF)


def float_of_bits(bits: Any) -> Any:
    assert isinstance(bits, np.uint32)
    return bits.view(np.float32)


def bits_of_float(value: Any) -> Any:
    assert isinstance(value, np.float32)
    return value.view(np.uint32)


def prefetch(array: Any, index: Any) -> None:
    """A hint: it never faults."""


def guard(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.view(Guarded)
    return tuple(guard(part) for part in value) if type(value) is tuple else value


def guarded(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: kernel(*(guard(argument) for argument in arguments))


class Poisoned:
    """NumPy, but what `empty` returns must not be used before it is written: as an index it is out of bounds, as a
    value it is not a number."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, kind: Any) -> Any:
        return np.full(shape, {"float32": np.nan, "uint8": POISON}.get(np.dtype(kind).name, 1 << 40), kind)


STAND_INS = {
    stand_in.__name__: stand_in
    for stand_in in (
        *(load64, load8, put_ones, put_positions, put_fields, not_rising, extract, leading_zeros, ones),
        *(magnitude_bits, float_of_bits, bits_of_float),
    )
}


def prepare() -> None:
    """Put the checks in place of what is compiled."""
    for name, stand_in in (STAND_INS | {"prefetch128": prefetch, "prefetch256": prefetch}).items():
        assert hasattr(cpu_decode, name)
        setattr(cpu_decode, name, stand_in)
    for name in ("inspect", "aggregate", "apply", "revert", "dot", "shared"):
        setattr(cpu_decode, name, guarded(getattr(cpu_decode, name)))
    cpu.np = Poisoned()
    cpu._sources = sources


def read(data: bytes) -> tuple[SparseLoCo, Layout, bytes]:
    """The run, the layout and the body that an input stands for."""
    bits, k, count, *sizes = data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
    scheme = SparseLoCo(k=KS[k % len(KS)], value_bits=(1, 2, 32)[bits % 3])
    shapes = []
    for number, size in enumerate(sizes[: 1 + count % 3]):
        large = size >= SMALL and scheme.k <= 128
        shapes.append((str(number), (4000 + 3 * (size - SMALL) if large else 1 + size % SMALL,)))
    return scheme, Layout.from_shapes(shapes), data[HEADER_BYTES:]


def check(data: bytes) -> Flaw:
    """Raise if the decoder does anything with this input that it must not; returns how the records were judged."""
    scheme, layout, body = read(data)
    plan = plan_of(layout, scheme)
    with np.errstate(all="ignore"):
        if len(body) != plan.body_bytes:
            assert refused(layout, scheme, body) is Reason.NOT_CANONICAL
            body = body[: plan.body_bytes].ljust(plan.body_bytes, b"\0")
        records = np.frombuffer(body, np.uint8)
        flaw = flaw_of(plan, records)
        assert (refused(layout, scheme, body) is None) == (flaw is Flaw.NONE)
        if flaw is Flaw.NONE:
            use(plan, records)
    return flaw


def refused(layout: Layout, scheme: SparseLoCo, body: bytes) -> Reason | None:
    """Why `decompress` refuses a body, None if it does not; it must not need more memory than the format says."""
    tracemalloc.start()
    try:
        decompress(layout, scheme, body)
    except Rejected as refusal:
        return refusal.reason
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        most = 100_000 + 2 * plan_of(layout, scheme).body_bytes + 64 * layout.size
        assert peak < most, f"{peak} bytes were taken for records that need less than {most}"
    return None


def flaw_of(plan: Plan, body: Any) -> Flaw:
    found, expected = cpu.inspect(plan, body), reference.inspect(plan, body)
    assert found.flaw is expected.flaw, f"found {found.flaw!r}, the definition says {expected.flaw!r}"
    assert found.format == expected.format
    assert found.flaw or found.counts.tolist() == expected.counts.tolist()
    return found.flaw


def use(plan: Plan, body: Any) -> None:
    """Do with good records all that is done with them."""
    for group in plan.groups:
        records = group.records(body)
        assert pack(group.format, *unpack(group.format, records)).tobytes() == records.tobytes(), "another encoding"
    random = np.random.default_rng(1)
    theta = random.standard_normal(plan.elements).astype(np.float32)
    bodies, clips = [body, good_body(random, plan), body], random.random((3, plan.parameters)).astype(np.float32)
    for contributors in (False, True):
        same(plan, "aggregate", theta, bodies, clips, np.float32(0.3), contributors)
    saved = same(plan, "apply", theta, body, clips[0], np.float32(0.2))
    same(plan, "revert", theta, body, saved)
    products = [kernel.dot(plan, theta, bodies, clips, np.float32(0.3)) for kernel in (cpu, reference)]
    assert np.allclose(*products, rtol=1e-9)
    for rows in (1, len(bodies)):
        assert cpu.shared(plan, bodies, rows).tolist() == reference.shared(plan, bodies, rows).tolist()


def same(plan: Plan, name: str, theta: Any, *arguments: Any) -> Any:
    """What the definition returns; the decoder must return the same and leave the same θ, to the bit."""
    found, expected = theta.copy(), theta.copy()
    results = [getattr(cpu, name)(plan, found, *arguments), getattr(reference, name)(plan, expected, *arguments)]
    for mine, theirs in ((found, expected), results):
        assert mine is theirs is None or np.array_equal(np.isnan(mine), np.isnan(theirs))
        assert mine is None or np.nan_to_num(mine).tobytes() == np.nan_to_num(theirs).tobytes(), f"{name} differs"
    return results[1]


def good_body(random: np.random.Generator, plan: Plan) -> Any:
    """Good records of a whole body."""
    return np.concatenate([good(random, group.format, group.count).reshape(-1) for group in plan.groups])


def good(random: np.random.Generator, fmt: RecordFormat, n: int) -> Any:
    """Good records uint8 [n, size] with any positions and any levels."""
    positions = np.sort(random.permuted(np.tile(np.arange(fmt.length), (n, 1)), axis=1)[:, : fmt.k], axis=1)
    none, raw = np.empty((n, 0), bool), random.standard_normal((n, fmt.k)).astype(np.float32)
    if fmt.value_bits == 32:
        return pack(fmt, positions, Codes(none, none, np.empty((n, 0), np.uint8), raw))
    codes = np.sort(random.integers(0, random.choice([3, 256]), (n, 2)).astype(np.uint8), axis=1)
    codes[:, 1] = codes[:, 1 if fmt.value_bits == 2 and fmt.k > 1 else 0]
    high = random.random((n, fmt.k)) < 0.5
    high[:, 0], high[:, -1] = True, False
    high &= codes[:, :1] != codes[:, 1:]
    used = np.where(high, codes[:, 1:], codes[:, :1])
    return pack(fmt, positions, Codes((raw < 0) & (used > 0), high, codes, np.empty((n, 0), np.float32)))


def good_input(random: np.random.Generator) -> bytes:
    """An input whose records are all accepted, often of few and small parameters."""
    header = random.integers(0, 256, HEADER_BYTES).astype(np.uint8)
    if random.random() < 0.7:
        header[3:] %= 64
    scheme, layout, _ = read(header.tobytes())
    return header.tobytes() + good_body(random, plan_of(layout, scheme)).tobytes()


def exchanged(random: np.random.Generator, data: bytes) -> bytes:
    """Two bits that are near each other exchanged, half of the time at the start: the upper map keeps its ones, so
    this gets past the first checks."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    start = 8 * HEADER_BYTES
    if len(bits) > start:
        one = int(random.integers(start, len(bits) if random.random() < 0.5 else min(len(bits), start + 64)))
        other = min(len(bits) - 1, one + int(random.integers(1, 12)))
        bits[[one, other]] = bits[[other, one]]
    return np.packbits(bits, bitorder="little").tobytes()


def filled(random: np.random.Generator, data: bytes) -> bytes:
    """All bits of the low bits, signs or level bits of the first record set, or none."""
    scheme, layout, _ = read(data)
    fmt = plan_of(layout, scheme).groups[0].format
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    section = int(random.integers(1, {1: 3, 2: 4, 32: 2}[fmt.value_bits]))
    start = 8 * (HEADER_BYTES + sum(fmt.sections[:section]))
    bits[start : start + fmt.k * (fmt.low_width if section == 1 else 1)] = random.integers(2)
    return np.packbits(bits, bitorder="little").tobytes()


def raised(data: bytes) -> bytes:
    """The last position of the first record made too large."""
    scheme, layout, _ = read(data)
    fmt = plan_of(layout, scheme).groups[0].format
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    upper = bits[8 * HEADER_BYTES :][: fmt.upper_bits]
    upper[np.flatnonzero(upper)[-1]], upper[-1] = 0, 1
    return np.packbits(bits, bitorder="little").tobytes()


def inputs(count: int) -> Iterator[bytes]:
    """A fixed set: good inputs, and each of them spoilt in several ways."""
    random = np.random.default_rng(2)
    for _ in range(count):
        data = good_input(random)
        yield data
        yield exchanged(random, data)
        yield filled(random, data)
        yield raised(data)
        flipped = bytearray(data)
        flipped[random.integers(HEADER_BYTES, len(data))] ^= 1 << int(random.integers(8))
        yield bytes(flipped)
        if data[0] % 3 == 2:
            yield data[:-4] + np.float32(random.choice([np.inf, -np.inf, np.nan])).tobytes()
        else:
            yield data[:-2] + random.integers(0, 3, 2).astype(np.uint8).tobytes()
        yield data[: random.integers(HEADER_BYTES, len(data))]
        yield data[:HEADER_BYTES] + random.bytes(len(data))
    yield b""


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """What the search tries next."""
    random = np.random.default_rng(seed)
    way = random.random()
    if len(data) <= HEADER_BYTES or way < 0.1:
        return good_input(random)[:max_size]
    return exchanged(random, data) if way < 0.4 else bytes(atheris.Mutate(data, max_size))


def search(arguments: list[str]) -> None:
    """Does not return: the process ends with a status other than 0 at the first input that `check` raises for."""

    def one(data: bytes) -> None:
        check(data)

    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    prepare()
    if REPLAY:
        print(json.dumps(Counter(check(data).name for data in inputs(90))))
    else:
        search(sys.argv)
