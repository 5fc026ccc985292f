"""Local state is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from neurons import training_state
from neurons.durable import read_document, replaced, write_document
from neurons.training_state import TrainingState
from protocol.errors import DocumentError
from protocol.ledger.manifest import Seat
from storage.errors import DiskUnusable

SEAT = Seat(uid=3, hotkey="5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY")
RUN = "ab" * 32


def test_a_document_is_read_as_it_was_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "seat.json"
    assert read_document(path, Seat) is None
    write_document(path, SEAT)
    write_document(path, SEAT)
    assert read_document(path, Seat) == SEAT
    assert os.listdir(tmp_path) == ["seat.json"]


def test_every_flipped_bit_of_a_document_is_found(tmp_path: Path) -> None:
    path = tmp_path / "seat.json"
    write_document(path, SEAT)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DocumentError, match=r"seat\.json is damaged"):
            read_document(path, Seat)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")

    def fill_the_disk() -> None:
        with replaced(path) as partial:
            partial.write_text("ne")
            raise OSError(28, "no space left on device")

    with pytest.raises(DiskUnusable, match="no space"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state"]


def test_what_a_killed_process_left_is_overwritten_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "~state").write_text("half of something long")
    with replaced(tmp_path / "state") as partial:
        partial.write_text("new")
    assert os.listdir(tmp_path) == ["state"]
    assert (tmp_path / "state").read_text() == "new"


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    force, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        seen.append(("fsync", (tmp_path / "state").exists()))
        force(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        seen.append(("rename", target.exists()))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    with replaced(tmp_path / "state") as partial:
        partial.write_text("new")
    assert seen == [("fsync", False), ("rename", False), ("fsync", True)]


def state() -> TrainingState:
    moments = {"step": np.array(2.0, np.float32), "exp_avg": np.arange(5, dtype=np.float32)}
    return TrainingState(7, bytes(range(32)), moments, np.ones(5, np.float32))


def test_a_miners_state_is_read_to_the_bit_and_its_key_is_for_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    assert training_state.read(path, RUN) is None
    training_state.write(path, RUN, state())
    found = training_state.read(path, RUN)
    assert found is not None
    assert (found.window, found.key) == (7, bytes(range(32)))
    assert found.key.hex() not in repr(found)
    assert {name: tensor.tobytes() for name, tensor in found.moments.items()} == {
        name: tensor.tobytes() for name, tensor in state().moments.items()
    }
    assert path.stat().st_mode & 0o077 == 0
    assert training_state.read(path, "cd" * 32) is None


def test_what_a_killed_miner_left_of_a_state_is_gone_with_the_next(tmp_path: Path) -> None:
    (tmp_path / ".tmpIiMH82").write_bytes(b"as far as safetensors came")
    training_state.write(tmp_path / "training.safetensors", RUN, state())
    assert os.listdir(tmp_path) == ["training.safetensors"]


def test_a_flipped_bit_of_a_miners_state_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "training.safetensors"
    training_state.write(path, RUN, state())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert training_state.read(path, RUN) is None
    assert "training.safetensors is damaged" in caplog.text


def test_a_miners_state_that_does_not_fit_the_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "~training.safetensors").mkdir()
    with pytest.raises(DiskUnusable, match="cannot be written"):
        training_state.write(tmp_path / "training.safetensors", RUN, state())
