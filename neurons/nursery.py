"""Processes that live and die with this one: started in a moment, ended in order, never left behind.

Neurons are forked from a server that has imported torch once (seven imports take 7 s, seven forks 0.3 s). Every child
holds one end of a pipe, its lifeline, and ends itself when the other end is gone: also after `kill -9`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from neurons.errors import EXPECTED_ERRORS, NeuronError

_PRELOAD = [
    "neurons.adversaries",
    "neurons.precompiled",
    "neurons.process",
    "neurons.founding",
    "neurons.validator",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
]
_STOP_SECONDS = 3.0
"""From asking a child to end to forcing it. Ctrl-C must end everything within 5 s."""

Result = TypeVar("Result")


@contextlib.contextmanager
def preloaded() -> Iterator[ForkServerContext]:
    """A fork server during the block; it imports what every neuron needs while the caller goes on."""
    # One thread for each neuron; numerical libraries read this when they are imported, which is in the server.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    resource_tracker.ensure_running()  # it changes the signal mask, so before the next line
    with _interrupts_held():
        forkserver.ensure_running()
    try:
        yield context
    finally:
        # It ends by itself after this process has, but up to several seconds later, when it is still importing.
        # The standard library has no public way to hurry it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Child:
    """A process. Closing `lifeline` is what tells it that its parent is gone."""

    name: str
    process: BaseProcess
    lifeline: Connection


def ending(exit_code: int) -> str:
    """How a process ended, for people."""
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = {number.value: number.name for number in signal.Signals}.get(-exit_code, f"signal {-exit_code}")
    return f"was killed by {name}"


def start(
    context: ForkServerContext | SpawnContext, name: str, target: Callable[..., object], *arguments: object
) -> Child:
    """Run `target(*arguments)` in a new process, in a session of its own: Ctrl-C reaches only the parent."""
    theirs, ours = context.Pipe(duplex=False)
    process = context.Process(target=_live, args=(theirs, target, arguments), name=name)
    if isinstance(context, SpawnContext):
        with _interrupts_held():
            process.start()
    else:
        process.start()  # waits while the server imports, so Ctrl-C must work; the server's children are deaf anyway
    theirs.close()
    return Child(name, process, ours)


def stop(children: Sequence[Child]) -> None:
    """End all of them: a signal, a few seconds, then force."""
    for child in children:
        child.process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for child in children:
        child.process.join(max(0.0, deadline - time.monotonic()))
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        child.lifeline.close()


class Call(Generic[Result]):
    """A function that runs in a child from now on, as `target(say, *arguments)`: what it says, returns or raises
    comes here."""

    def __init__(
        self, context: ForkServerContext | SpawnContext, target: Callable[..., Result], *arguments: object
    ) -> None:
        self._messages, theirs = context.Pipe(duplex=False)
        self._child = start(context, target.__name__, _answer, theirs, target, arguments)
        theirs.close()

    def result(self, say: Callable[[str], None]) -> Result:
        """Wait for the end and pass on what is said until then. Raises the function's expected errors, and
        `NeuronError` when its process dies."""
        while True:
            try:
                kind, value = self._messages.recv()
            except EOFError:
                self._child.process.join()
                raise NeuronError(f"{self._child.name} {ending(self._child.process.exitcode or 0)}") from None
            if kind == "said":
                say(value)
            elif kind == "raised":
                raise value
            else:
                result: Result = value
                return result

    def close(self) -> None:
        """End the process, finished or not."""
        stop([self._child])
        self._messages.close()


def _live(lifeline: Connection, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.setsid()
    # From here on Ctrl-C cannot reach it; a SIGINT that somebody sends on purpose may, once there is a handler.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    target(*arguments)


def _die_with_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _answer(answers: Connection, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.dup2(2, 1)  # the parent's standard output is for what the command prints
    sys.stdout = sys.stderr

    def say(text: str) -> None:
        answers.send(("said", text))

    try:
        answers.send(("returned", target(say, *arguments)))
    except EXPECTED_ERRORS as error:
        answers.send(("raised", error))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block ends. A process that is started in the block starts deaf to it; else it would die
    of it with a traceback while it still imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
