"""Who joins late: what it downloads, from whom, and that it comes to the same state."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from neurons.validator import Validator
from storage.bucket import Bucket, Writer


class Meter:
    """Buckets as one node sees them, with what it reads of their objects."""

    def __init__(self, net: Any) -> None:
        self._net = net
        self.ranges: Counter[tuple[str, int, int]] = Counter()

    def open(self, commitment: bytes) -> Bucket:
        return _Metered(self._net.open_bucket(commitment), self.ranges)

    def bytes_of(self, *parts: str) -> int:
        return sum(n * length for (key, _, length), n in self.ranges.items() if any(part in key for part in parts))


class _Metered:
    def __init__(self, inner: Bucket, ranges: Counter[tuple[str, int, int]]) -> None:
        self._inner, self._ranges = inner, ranges

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def copy_range(self, key: str, start: int, length: int, writer: Writer, *, size_bytes: int) -> None:
        self._ranges[key, start, length] += 1
        await self._inner.copy_range(key, start, length, writer, size_bytes=size_bytes)


def checkpoint_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("shard-*"))


def test_a_joiner_reads_one_checkpoint_and_the_payloads_since_each_once(network, virtual, quick) -> None:
    quick["checkpoints"] = {"every_windows": 6, "keep": 2}

    async def scenario() -> None:
        async with await network(["v", "w", "a", "b", "late"], stakes=(1000.0, 500.0), table=quick) as net:
            for name in "vw":
                net.start(name, Validator)
            for name in "ab":
                net.start(name)
            await net.windows(11)
            meter = Meter(net)
            net.start("late", open_bucket=meter.open)
            await net.windows(2)
            await net.blocks(2)
            assert len(net.roots()) == 1
            late = net.nodes["late"]
            folder = net.bucket("v").root / net.keys.checkpoint_prefix() / "00000006"
            assert meter.bytes_of("/checkpoints/") == checkpoint_bytes(folder)
            named = [c for window in range(6, late.state.window) for c in (await net.manifest(window)).contributions]
            assert len(named) >= 10
            shards = Counter({key: n for (key, _, _), n in meter.ranges.items() if "/shard-" in key and "5" in key})
            payloads = {key: n for key, n in shards.items() if "/checkpoints/" not in key}
            own = sum(late.hotkey == c.hotkey for c in named)
            assert len(payloads) >= len(named) - own
            assert set(payloads.values()) == {1}

    virtual(scenario())


def test_a_joiner_goes_on_from_the_mirrors_when_the_miners_have_vanished(network, virtual, quick) -> None:
    quick["checkpoints"] = {"every_windows": 4, "keep": 2}

    async def scenario() -> None:
        async with await network(["v", "a", "b", "late"], table=quick) as net:
            net.start("v", Validator)
            for name in "ab":
                net.start(name)
            await net.windows(7)
            await net.stop("a", "b")
            for name in "ab":
                shutil.rmtree(net.bucket(name).root)
            net.start("late")
            await net.windows(1)
            await net.blocks(2)
            assert net.nodes["late"].state.window >= 7
            assert len(net.roots()) == 1

    virtual(scenario())


def test_what_is_read_ahead_does_not_pile_up(network, virtual, quick) -> None:
    quick["checkpoints"] = {"every_windows": 20, "keep": 2}

    async def scenario() -> None:
        async with await network(["v", "a", "late"], table=quick) as net:
            net.start("v", Validator)
            net.start("a")
            await net.windows(12)
            late = net.start("late")
            most = 0
            clear = late.exchange.forget

            def counted(keep: Any = ()) -> None:
                nonlocal most
                clear(keep)
                most = max(most, len(list((late.parts.folder / "sealed").iterdir())))

            late.exchange.forget = counted
            await net.windows(2)
            assert len(net.roots()) == 1
            assert 0 < most <= 8
            assert late.fetcher.awaited() == []

    virtual(scenario())
