"""What a check finds, and the check as a value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neurons.doctor.patient import Patient

Figure = float | int | str


class State(Enum):
    """How bad it is, from harmless to what stops a node; the number is the exit code of the whole command."""

    OK = 0
    SKIPPED = -1
    WARN = 10
    FAIL = 11

    @property
    def word(self) -> str:
        """How it is written."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: a sentence, with what to do if something must be done, and figures for programs."""

    state: State
    sentence: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One question. `examine` may take `seconds`; it raises an expected error for what is a failure, `Missing` when
    something it needs is not there."""

    name: str
    seconds: float
    examine: Callable[[Patient], Awaitable[Finding]]


class Missing(Exception):
    """A check cannot be made, because another one failed. Raised within checks, caught where they run."""


def ok(sentence: str, **figures: Figure) -> Finding:
    """All is well."""
    return Finding(State.OK, sentence, figures)


def warn(sentence: str, **figures: Figure) -> Finding:
    """A node would run, but worse than it could."""
    return Finding(State.WARN, sentence, figures)


def fail(sentence: str, **figures: Figure) -> Finding:
    """A node would not run, or earn nothing."""
    return Finding(State.FAIL, sentence, figures)


def skipped(sentence: str) -> Finding:
    """There was nothing to check."""
    return Finding(State.SKIPPED, sentence)
