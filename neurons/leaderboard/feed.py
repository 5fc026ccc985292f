"""Reading a series of signed documents, one per window, out of the validators' buckets: each once, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Generic, TypeVar

from neurons.documents import Source
from neurons.leaderboard.words import plain
from protocol.errors import DocumentError
from protocol.identity import SignedDocument
from storage.errors import NotFound, StorageError, TooLarge

T = TypeVar("T", bound=SignedDocument)

_BATCH_WINDOWS = 16
"""Windows that are read at once: enough to hide latency when catching up, and how far to look behind a gap."""


class _Lack(Enum):
    """Why there is no document of a window: not written yet, none in any bucket, or only malformed ones."""

    WAIT = auto()
    MISSING = auto()
    BAD = auto()


class Feed(Generic[T]):
    """The documents of one kind from window `first` on. `name` is what problems call it, `key` the object's name,
    `limit_bytes` its largest size; `parse` reads one that `Source` published, or raises `DocumentError`."""

    def __init__(
        self,
        name: str,
        first: int,
        key: Callable[[int], str],
        limit_bytes: int,
        parse: Callable[[bytes, int, Source], T],
    ) -> None:
        self.name, self.next = name, first
        self._key, self._limit_bytes, self._parse = key, limit_bytes, parse
        self.problems: list[str] = []
        """What was found malformed or missing, for good."""
        self.troubles: list[str] = []
        """What could not be read this time."""
        self._bad: set[tuple[int, str]] = set()

    async def read(self, sources: Sequence[Source], current: int) -> list[T]:
        """The documents of the windows before `current` that were not read before, in order. `sources` come in the
        order in which they count. Of each window the first source's counts; the next one's does when the first
        is malformed, or still missing a whole window after it was due."""
        self.troubles = []
        found: list[T] = []
        while self.next < current:
            windows = range(self.next, min(self.next + _BATCH_WINDOWS, current))
            batch = await asyncio.gather(*(self._read_one(w, sources, w < current - 1) for w in windows))
            if not self._take(batch, found):
                break
        return found

    def _take(self, batch: Sequence[T | _Lack], found: list[T]) -> bool:
        """Move what can be used from `batch` to `found`; whether all of it could be."""
        for place, document in enumerate(batch):
            if document is _Lack.WAIT:
                return False
            if document is _Lack.MISSING:
                # A validator that was killed at the wrong moment leaves a gap, which the next document closes.
                if all(isinstance(later, _Lack) for later in batch[place + 1 :]):
                    return False
                self.problems.append(f"there are no {self.name} of window {self.next}")
            if not isinstance(document, _Lack):
                found.append(document)
            self.next += 1
        return True

    async def _read_one(self, window: int, sources: Sequence[Source], overdue: bool) -> T | _Lack:
        lack = _Lack.MISSING
        for source in sources:
            if (window, source.hotkey) in self._bad:
                lack = lack if lack is _Lack.WAIT else _Lack.BAD
                continue
            try:
                data = await source.bucket.get(self._key(window), limit_bytes=self._limit_bytes)
                return await asyncio.to_thread(self._parse, data, window, source)
            except NotFound:
                if not overdue:
                    return _Lack.WAIT
            except (TooLarge, DocumentError) as error:
                lack = lack if lack is _Lack.WAIT else _Lack.BAD
                self._bad.add((window, source.hotkey))
                self.problems.append(self._sentence(window, source, error))
            except StorageError as error:
                lack = _Lack.WAIT
                self.troubles.append(self._sentence(window, source, error))
        return lack

    def _sentence(self, window: int, source: Source, error: Exception) -> str:
        return plain(f"{self.name} of window {window} from uid {source.uid}: {error}")
