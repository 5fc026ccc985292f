"""A state from checkpoints: the newest one that the ledger names, leaf by leaf, from all who hold it (protocol §15)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from neurons.rounds import Place
from neurons.training.model import empty_flat
from protocol.ledger.manifest import Manifest
from protocol.ledger.state import LEAF_BYTES, root_of
from protocol.run import Run
from protocol.sparseloco.layout import F32, Layout
from storage.bucket import Bucket
from storage.checkpoint import Checkpoint, complete_windows, latest_window, open_checkpoint
from storage.errors import CheckpointError, NotFound, NotSupported, StorageError, Unavailable
from storage.keys import Keys

Say = Callable[[str], object]

_LEAVES_AT_ONCE = 2
"""How many leaves are read from one place at a time: one comes while the other is checked."""

_FAULTS = 3
"""After how many wrong leaves a place is asked for no more: each may cost the time that a leaf takes."""

_SLOW, _UNKNOWN_SECONDS = 3.0, 20.0
"""A leaf that takes so many times as long as another place took for its slowest is read there too; or so many seconds,
where that one has not given any yet."""


SignedManifest = Callable[[int], Awaitable[Manifest | None]]
"""The manifest of a past window, as the ledger has it."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A state that the ledger confirms: flat θ at the start of `window`, its root, and the manifests of the two windows
    before, as far as the run has them."""

    theta: F32
    window: int
    root: str
    before: tuple[Manifest, ...]


@dataclass(frozen=True, slots=True)
class Loader:
    """Finds states of `run` to start from. `signed_manifest` asks the ledger; `complain` is told what is wrong with a
    checkpoint and whose it is, `report` what goes on."""

    run: Run
    layout: Layout
    signed_manifest: SignedManifest
    complain: Say
    report: Say

    async def newest(
        self, places: Sequence[Place], publisher: Bucket | None, head: int, seconds: float
    ) -> Start | None:
        """The newest state up to window `head`, the chain's, that lies in one of `places`, the validators' buckets, or,
        as the first of the run, with its publisher; None while there is none. A list may take `seconds`."""
        first = self.run.time.first_window
        last = max(first, head)
        answers = await asyncio.gather(*(self._windows(place, last, seconds) for place in places))
        offers: dict[int, list[Place]] = {}
        for place, windows in zip(places, answers, strict=True):
            for window in windows or ():
                offers.setdefault(window, []).append(place)
        # While no validator answers, the first state may be one from which there is no way on: what was sent since then
        # is kept for a while only.
        if publisher is not None and (not places or any(windows is not None for windows in answers)):
            offers.setdefault(first, []).append(Place("the run's publisher", publisher))
        for window in sorted(offers, reverse=True):
            if window >= first and (start := await self._start(window, offers[window])) is not None:
                return start
        return None

    async def _windows(self, place: Place, last: int, seconds: float) -> list[int] | None:
        """Windows up to `last` of which `place` has a checkpoint, no more than it has to keep; None if it is silent."""
        try:
            async with asyncio.timeout(seconds):  # a list can be without an end
                return (await self._listed(place, last))[-self.run.checkpoints.keep :]
        except StorageError as error:
            self.complain(f"the checkpoints of {place.name}: {error}")
            return None if isinstance(error, Unavailable) else []
        except TimeoutError:
            self.complain(f"the checkpoints of {place.name}: no answer within {seconds:.0f} s")
            return None

    async def _listed(self, place: Place, last: int) -> list[int]:
        newest = None
        try:
            # Before the list, also where there is one: who lists objects and gives none is as good as silent.
            newest = await latest_window(place.bucket, self._keys)
        except CheckpointError as error:
            self.complain(f"the checkpoints of {place.name}: {error}")
        try:
            return await complete_windows(place.bucket, self._keys, before_window=last + 1)
        except NotSupported:
            return [newest] if newest is not None and newest <= last else []

    async def _start(self, window: int, places: Sequence[Place]) -> Start | None:
        first = self.run.time.first_window
        before = [await self.signed_manifest(number) for number in (window - 2, window - 1) if number >= first]
        named = self.run.genesis_root
        if window > first:
            manifest = await self.signed_manifest(window)
            if manifest is None or None in before:
                self.complain(f"checkpoint {window} is of a window that the ledger does not name yet")
                return None
            named = manifest.root
        self.report(f"loading checkpoint {window}")
        theta = await read_state(places, self._keys, self.layout, window, named, self.complain)
        if theta is None:
            return None
        return Start(theta, window, named, tuple(manifest for manifest in before if manifest is not None))

    @property
    def _keys(self) -> Keys:
        return Keys(self.run.digest()[:16])


async def read_state(
    places: Sequence[Place], keys: Keys, layout: Layout, window: int, root: str, complain: Say
) -> F32 | None:
    """θ at the start of `window`, flat in the order of `layout`, if these places together hold a checkpoint with leaves
    that give `root`. Every leaf is checked when it comes; what is wrong or slow in one place is taken from another, and
    `complain` is told which place that is. None when some leaf is nowhere to be had."""
    shapes = {parameter.name: parameter.shape for parameter in layout.parameters}
    opened = [_opened(place, keys, window, root, shapes, complain) for place in places]
    sources = [source for source in await asyncio.gather(*opened) if source is not None]
    if not sources:
        return None
    theta = empty_flat(layout.size)
    return theta if await _Download(sources, theta, complain).run() else None


async def _opened(
    place: Place, keys: Keys, window: int, root: str, shapes: dict[str, tuple[int, ...]], complain: Say
) -> _Source | None:
    checkpoint = None
    for which in (None, window):  # by way of the pointer, if it is the newest: so that is checked too
        try:
            checkpoint = await open_checkpoint(place.bucket, keys, window=which, shapes=shapes)
        except NotFound:
            continue
        except StorageError as error:
            complain(f"checkpoint {window} of {place.name}: {error}")
            continue
        if checkpoint.index.window == window:
            break
    if checkpoint is None or checkpoint.index.window != window:
        return None
    found = root_of([bytes.fromhex(leaf) for leaf in checkpoint.index.leaves])
    if (found, checkpoint.index.leaf_bytes) != (root, LEAF_BYTES):
        complain(f"checkpoint {window} of {place.name} has root {found}, the ledger says {root}")
        return None
    return _Source(place, checkpoint)


@dataclass(slots=True, eq=False)
class _Source:
    """One place that says it holds the checkpoint. `wrong` are the leaves that it did not give; `slowest` is how many
    seconds it took for one that it did."""

    place: Place
    checkpoint: Checkpoint
    wrong: set[int] = field(default_factory=set)
    slowest: float | None = None


@dataclass(slots=True, eq=False)
class _Reading:
    """A leaf that is on its way from one source."""

    leaf: int
    source: _Source
    since: float
    task: asyncio.Task[bytes]


class _Download:
    """One checkpoint on its way from several sources into one array."""

    def __init__(self, sources: Sequence[_Source], theta: F32, complain: Say) -> None:
        self._sources = sources
        self._bytes = theta.view(np.uint8)
        self._complain = complain
        leaves = sources[0].checkpoint.index.leaves  # the same for all: they give the same root
        self._missing = dict.fromkeys(range(len(leaves)))
        self._readings: list[_Reading] = []
        self._changed = asyncio.Event()

    async def run(self) -> bool:
        """Whether all leaves came."""
        work = [self._work(source) for source in self._sources for _ in range(_LEAVES_AT_ONCE)]
        try:
            await asyncio.gather(*work)
        finally:
            for reading in self._readings:
                reading.task.cancel()
            await asyncio.gather(*(reading.task for reading in self._readings), return_exceptions=True)
        return not self._missing

    async def _work(self, source: _Source) -> None:
        clock = asyncio.get_running_loop().time
        while len(source.wrong) < _FAULTS and (leaf := await self._next(source)) is not None:
            reading = _Reading(leaf, source, clock(), asyncio.create_task(source.checkpoint.read_leaf(leaf)))
            self._readings.append(reading)
            try:
                await asyncio.wait({reading.task})
                if not reading.task.cancelled():
                    self._take(reading, reading.task.result())
                    source.slowest = max(source.slowest or 0.0, clock() - reading.since)
            except StorageError as error:
                source.wrong.add(leaf)
                if isinstance(error, Unavailable):  # who is silent for one leaf is not asked for the next
                    source.wrong.update(self._missing)
                window = source.checkpoint.index.window
                self._complain(f"checkpoint {window} of {source.place.name}: {error}")
            finally:
                reading.task.cancel()
                self._readings.remove(reading)
                self._changed.set()

    def _take(self, reading: _Reading, data: bytes) -> None:
        start, end = reading.source.checkpoint.extent(reading.leaf)
        self._bytes[start:end] = np.frombuffer(data, np.uint8)
        self._missing.pop(reading.leaf, None)
        for other in self._readings:
            if other is not reading and other.leaf == reading.leaf:
                other.task.cancel()

    async def _next(self, source: _Source) -> int | None:
        """The next leaf to read from `source`: one that nobody reads, or one that another takes too long for. None when
        it is of no more use."""
        while wanted := [leaf for leaf in self._missing if leaf not in source.wrong]:
            on_their_way = Counter(reading.leaf for reading in self._readings)
            free = next((leaf for leaf in wanted if leaf not in on_their_way), None)
            if free is not None:
                return free
            late = self._oldest([r for r in self._readings if r.leaf in wanted and on_their_way[r.leaf] == 1], source)
            seconds = None if late is None else late.since + _patience(source) - asyncio.get_running_loop().time()
            if late is not None and seconds is not None and seconds <= 0:
                slow, other = late.source.place.name, source.place.name
                self._complain(f"leaf {late.leaf} comes slowly from {slow}: it is read from {other} too")
                return late.leaf
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
        return None

    def _oldest(self, readings: Sequence[_Reading], source: _Source) -> _Reading | None:
        others = (reading for reading in readings if reading.source is not source)
        return min(others, key=lambda reading: reading.since, default=None)


def _patience(source: _Source) -> float:
    """For how many seconds `source` leaves a leaf to another one."""
    return _UNKNOWN_SECONDS if source.slowest is None else _SLOW * source.slowest
