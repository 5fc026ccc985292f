"""Real `windrow` processes for tests: started as a terminal would, listened to, and ended with all their children."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

PATIENCE_SECONDS = 120.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def _collect(stream: IO[str], lines: list[str]) -> None:
    with stream:
        lines.extend(stream)


class Process:
    """A `windrow` command in a process group of its own, as a terminal would start it."""

    started: ClassVar[list[Process]] = []

    def __init__(self, *arguments: object) -> None:
        self.mark = secrets.token_hex(16)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "neurons.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "MARK_OF_THIS_TEST": self.mark},
        )
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.out, self.err = list[str](), list[str]()
        streams = ((self.popen.stdout, self.out), (self.popen.stderr, self.err))
        self.readers = [threading.Thread(target=_collect, args=pair, daemon=True) for pair in streams]
        for reader in self.readers:
            reader.start()
        Process.started.append(self)

    def says(self, words: str) -> None:
        """Wait until it has printed a line with these words on stderr."""
        wait_for(lambda: self.popen.poll() is not None or any(words in line for line in self.err), words)
        assert any(words in line for line in self.err), "".join(self.err)

    def press_ctrl_c(self) -> None:
        """What a terminal does: the signal reaches the whole process group."""
        os.killpg(self.popen.pid, signal.SIGINT)

    def end(self) -> int:
        """Wait for its end and that of every process it started; returns its exit code."""
        code = self.popen.wait(PATIENCE_SECONDS)
        wait_for(lambda: not self.family(), f"{self.family()} to end")
        for reader in self.readers:
            reader.join()
        assert not any("Traceback" in line for line in self.err), "".join(self.err)
        return code

    def family(self) -> list[int]:
        """Living processes that descend from this one, by an environment variable they inherit."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_mine(pid)]

    def _is_mine(self, pid: int) -> bool:
        try:
            return self.mark in Path(f"/proc/{pid}/environ").read_text(errors="replace")
        except OSError:  # gone, a zombie, or somebody else's
            return False

    def destroy(self) -> None:
        """End it and all its processes, whatever state they are in."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.wait(PATIENCE_SECONDS)
        for reader in self.readers:
            reader.join()

    def table(self) -> dict[str, Any]:
        """What `--json` printed, which must be all that is on stdout."""
        assert len(self.out) == 1
        return dict(json.loads(self.out[0]))
