from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.context import SpawnContext
from pathlib import Path

import pytest

from neurons import nursery
from neurons.errors import NeuronError, TextError
from neurons.nursery import Call, ending

PATIENCE_SECONDS = 60.0


@pytest.fixture
def spawn() -> SpawnContext:
    return multiprocessing.get_context("spawn")


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def add(say: Callable[[str], None], first: int, second: int) -> int:
    say("adding")
    print("noise that must not reach the parent's standard output")
    os.write(1, b"nor noise of a library\n")
    return first + second


def complain(say: Callable[[str], None]) -> None:
    raise TextError("add text")


def vanish(say: Callable[[str], None]) -> None:
    os._exit(9)


def write_pid_and_wait(path: Path, deaf: bool) -> None:
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    time.sleep(PATIENCE_SECONDS)


def test_a_call_says_and_returns(spawn: SpawnContext, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    with closing(Call(spawn, add, 2, 3)) as call:
        assert call.result(said.append) == 5
    assert said == ["adding"]
    assert capfd.readouterr().out == ""


def test_an_expected_error_of_a_call_is_raised_here(spawn: SpawnContext) -> None:
    with closing(Call(spawn, complain)) as call, pytest.raises(TextError, match="add text"):
        call.result(print)


def test_a_call_whose_process_dies_is_named(spawn: SpawnContext) -> None:
    with closing(Call(spawn, vanish)) as call, pytest.raises(NeuronError, match="vanish ended with exit code 9"):
        call.result(print)


@pytest.mark.parametrize("deaf", [False, True])
def test_stopping_ends_a_child_that_does_not_listen_too(spawn: SpawnContext, tmp_path: Path, deaf: bool) -> None:
    child = nursery.start(spawn, "child", write_pid_and_wait, tmp_path / "pid", deaf)
    assert eventually((tmp_path / "pid").exists)
    nursery.stop([child])
    assert child.process.exitcode == (-signal.SIGKILL if deaf else -signal.SIGTERM)


def test_a_child_whose_parent_is_gone_ends_itself(spawn: SpawnContext, tmp_path: Path) -> None:
    child = nursery.start(spawn, "child", write_pid_and_wait, tmp_path / "pid", False)
    assert eventually((tmp_path / "pid").exists)
    child.lifeline.close()
    assert eventually(lambda: child.process.exitcode is not None)


def test_a_child_is_in_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it(
    spawn: SpawnContext, tmp_path: Path
) -> None:
    child = nursery.start(spawn, "child", write_pid_and_wait, tmp_path / "pid", False)
    assert eventually((tmp_path / "pid").exists)
    pid = int((tmp_path / "pid").read_text())
    assert os.getsid(pid) == pid != os.getsid(0)
    nursery.stop([child])


def test_endings_are_told_in_words() -> None:
    assert ending(0) == "ended with exit code 0"
    assert ending(5) == "ended with exit code 5"
    assert ending(-9) == "was killed by SIGKILL"
    assert ending(-40) == "was killed by signal 40"
