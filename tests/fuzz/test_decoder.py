"""The decoder meets hostile bytes in a process of its own, in which numba is switched off (see `decoder`)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.sparseloco.records import Flaw


def decoder(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("decoder.py")
    return subprocess.run([sys.executable, script, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


def test_hostile_bytes_are_judged_as_defined_and_never_leave_the_arrays(tmp_path: Path) -> None:
    done = decoder(tmp_path, "replay")
    assert done.returncode == 0, done.stderr
    judged = json.loads(done.stdout)
    assert set(judged) == {flaw.name for flaw in Flaw}, "some kind of input was never tried"
    assert sum(judged.values()) > 500


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install atheris")
def test_a_short_search_led_by_coverage_finds_nothing(tmp_path: Path) -> None:
    done = decoder(tmp_path, "-runs=1000", "-seed=1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 1000 runs" in done.stderr
    assert not list(tmp_path.glob("crash-*"))
