"""How fast this machine judges, and what it can still finish in time (protocol §14)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

RESERVE = 1.2
"""What is begun must fit this many times: others use the machine too, and not evenly."""

_HOPE = 0.75


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that this machine takes for a page: for its gradient with the products of all payloads, and for its loss.
    None: not known yet."""

    gradient_seconds: float | None = None
    loss_seconds: float | None = None

    def after(self, seen: Pace) -> Pace:
        """What to expect after a window that showed `seen`."""
        return Pace(
            tempered(self.gradient_seconds, seen.gradient_seconds), tempered(self.loss_seconds, seen.loss_seconds)
        )


def tempered(before: float | None, seen: float | None) -> float | None:
    """What to expect of something that was expected to take `before` seconds and took `seen`: a machine that has become
    slower is believed at once, one that has become faster by half, because to be late costs more than to be idle. What
    was not even begun in a window is hoped to take less the next time, or one bad window would end it for good."""
    if before is None:
        return seen
    if seen is None:
        return _HOPE * before
    return seen if seen > before else (before + seen) / 2


@dataclass(slots=True)
class _Stopwatch:
    seconds: float = 0.0
    pages: int = 0

    @property
    def mean(self) -> float | None:
        return self.seconds / self.pages if self.pages else None


@dataclass(slots=True)
class Budget:
    """The time of one window's judging. `clock` tells seconds, at `end` judging should be over, and `over` says that it
    must be: blocks may come sooner than expected. `remembered` is the pace of earlier windows."""

    clock: Callable[[], float]
    end: float
    over: Callable[[], bool]
    remembered: Pace
    _gradients: _Stopwatch = field(default_factory=_Stopwatch)
    _losses: _Stopwatch = field(default_factory=_Stopwatch)

    @classmethod
    def unlimited(cls) -> Budget:
        """All the time in the world."""
        return cls(lambda: 0.0, math.inf, lambda: False, Pace())

    @property
    def seen(self) -> Pace:
        """The pace of this window so far."""
        return Pace(self._gradients.mean, self._losses.mean)

    def allows(self, *, gradients: int = 0, losses: int = 0) -> bool:
        """Whether the gradients of so many pages and the losses of so many can be had in time, at the slower of the
        remembered pace and this window's. Of what nobody knows the pace, one page is tried; a loss takes no longer than
        a gradient."""
        gradient = max(self.remembered.gradient_seconds or 0.0, self._gradients.mean or 0.0)
        loss = max(self.remembered.loss_seconds or 0.0, self._losses.mean or 0.0) or gradient
        needed = RESERVE * (gradients * gradient + losses * loss)
        return not self.over() and self.clock() + needed <= self.end

    @contextmanager
    def gradient(self) -> Iterator[None]:
        """Time one page's gradient."""
        with self._timed(self._gradients):
            yield

    @contextmanager
    def loss(self) -> Iterator[None]:
        """Time one page's loss."""
        with self._timed(self._losses):
            yield

    @contextmanager
    def _timed(self, watch: _Stopwatch) -> Iterator[None]:
        began = self.clock()
        yield
        watch.seconds += self.clock() - began
        watch.pages += 1
