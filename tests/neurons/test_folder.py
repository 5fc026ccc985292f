from __future__ import annotations

import os
from pathlib import Path

import pytest

from neurons.errors import FolderError
from neurons.folder import (
    Charter,
    Member,
    bucket_name,
    claimed,
    held,
    is_held,
    read_charter,
    require_network,
    under_construction,
    write_charter,
)

CHARTER = Charter(run_digest="0" * 64, members=(Member(name="miner-1", role="miner", hotkey="5Abc"),), text=None)


def found(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with under_construction(folder):
        (folder / "run.toml").write_text("the run")
        write_charter(folder, CHARTER)


def test_nothing_and_an_empty_folder_hold_no_network_yet(tmp_path: Path) -> None:
    assert read_charter(tmp_path / "nothing") is None
    assert read_charter(tmp_path) is None


def test_a_charter_is_read_as_it_was_written(tmp_path: Path) -> None:
    found(tmp_path)
    assert read_charter(tmp_path) == require_network(tmp_path) == CHARTER
    assert sorted(os.listdir(tmp_path)) == ["network.json", "run.toml"]


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FolderError, match="not empty"):
        read_charter(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "net"):
        with pytest.raises(FolderError, match="choose another --dir"), claimed(path):
            pass
    with pytest.raises(FolderError, match="no folder"):
        read_charter(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"members": []}', b'{"members": 3, "text": 1}'])
def test_a_damaged_charter_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    found(tmp_path)
    (tmp_path / "network.json").write_bytes(content)
    with pytest.raises(FolderError, match=r"is damaged; remove .* and start over"):
        read_charter(tmp_path)


def test_commands_that_need_a_network_say_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="windrow up --dir"):
        require_network(tmp_path)


def test_a_founding_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with under_construction(tmp_path):
            (tmp_path / "dataset").mkdir()
            (tmp_path / "dataset" / "tokens").write_text("half")
            (tmp_path / "run.toml").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_founding_left_is_no_network_and_is_swept(tmp_path: Path) -> None:
    killed = under_construction(tmp_path)
    killed.__enter__()  # and never comes back
    (tmp_path / "buckets").mkdir()
    write_charter(tmp_path, CHARTER)
    assert read_charter(tmp_path) is None
    with under_construction(tmp_path):
        assert "buckets" not in os.listdir(tmp_path)
        write_charter(tmp_path, CHARTER)
    assert read_charter(tmp_path) == CHARTER


def test_a_folder_that_stays_empty_goes_again_with_its_parents(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    with claimed(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_a_network_stays_when_its_claim_ends(tmp_path: Path) -> None:
    with claimed(tmp_path / "net"):
        found(tmp_path / "net")
    assert read_charter(tmp_path / "net") == CHARTER


def test_a_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with claimed(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(FolderError, match="another `windrow up` is running"), claimed(tmp_path):
            pass
        with pytest.raises(FolderError, match="busy"), held(tmp_path, "busy"):
            pass
    assert not is_held(tmp_path)
    with held(tmp_path, "busy"):
        pass
    assert os.listdir(tmp_path) == []


def test_nobody_holds_what_is_not_there(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "nothing")


def test_bucket_names_are_lower_case_and_differ_by_hotkey() -> None:
    alice, bob = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"
    assert bucket_name(alice) == bucket_name(alice).lower() != bucket_name(bob)
