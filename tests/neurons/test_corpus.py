from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from tokenizers import Tokenizer

from neurons.corpus import (
    END_TOKEN,
    END_TOKEN_ID,
    folder_texts,
    require_bytes,
    standard_library_texts,
    tokenize,
    train_tokenizer,
)
from neurons.errors import ConfigError, TextError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve texts in two folders, with a little of everything that a folder may hold."""
    root = tmp_path / "texts"
    for number in range(12):
        path = root / ("a" if number < 6 else "b") / f"{number:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Each window, peer {number} lays its update in a row.\n" * (number + 1))
    return root


def names(root: Path, paths: tuple[Path, ...]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_the_standard_library_is_found_without_tests_and_third_party_packages() -> None:
    texts = standard_library_texts()
    assert {"argparse.py", "ast.py"} <= {path.name for path in texts}
    assert not any({"site-packages", "test", "tests"} & set(path.parts) for path in texts)
    require_bytes(texts, 5_000_000)


def test_files_come_in_the_order_of_their_hashed_relative_paths_wherever_the_folder_lies(folder, tmp_path) -> None:
    listed = names(folder, folder_texts(folder))
    assert listed == sorted(listed, key=lambda name: blake3(name.encode()).digest())
    assert listed != sorted(listed)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert names(moved, folder_texts(moved)) == listed


def test_hidden_files_links_and_binaries_are_left_out(folder) -> None:
    expected = names(folder, folder_texts(folder))
    (folder / ".hidden").write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "cut.txt").write_bytes("né".encode()[:-1])
    (folder / "zero.bin").write_bytes(b"ab\0cd")
    (folder / "link.txt").symlink_to(folder / "a" / "00.txt")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    assert names(folder, folder_texts(folder)) == expected


def test_the_tokenizer_is_the_same_in_another_process(folder) -> None:
    here = train_tokenizer(folder_texts(folder), 300)
    assert train_tokenizer(folder_texts(folder), 300) == here
    program = (
        "import sys, pathlib; from neurons.corpus import *; "
        "sys.stdout.buffer.write(train_tokenizer(folder_texts(pathlib.Path(sys.argv[1])), 300))"
    )
    root = Path(__file__).parents[2]
    there = subprocess.run([sys.executable, "-c", program, folder], cwd=root, capture_output=True, check=True)
    assert there.stdout == here


def test_the_stream_holds_every_text_in_order_with_the_end_token_after_each(folder) -> None:
    files = folder_texts(folder)
    data = train_tokenizer(files, 300)
    stream = tokenize(files, data)
    assert stream.dtype == np.uint32
    assert stream.max() < 300
    tokenizer = Tokenizer.from_str(data.decode())
    assert tokenizer.token_to_id(END_TOKEN) == END_TOKEN_ID == 0
    ends = np.flatnonzero(stream == END_TOKEN_ID)
    assert len(ends) == len(files)
    assert ends[-1] == len(stream) - 1
    parts = np.split(stream, ends + 1)[:-1]
    assert [tokenizer.decode(part[:-1].tolist()) for part in parts] == [path.read_text() for path in files]


def test_text_in_any_script_survives_a_tokenizer_that_never_saw_it(folder, tmp_path) -> None:
    data = train_tokenizer(folder_texts(folder), 300)
    text = "Die Größe: θ_W − α·Δ, 窓, \r\n\ttab and 🌾"
    path = tmp_path / "other.txt"
    path.write_bytes(text.encode())
    stream = tokenize((path,), data)
    assert Tokenizer.from_str(data.decode()).decode(stream[:-1].tolist()) == text


def test_a_text_that_spells_the_end_token_does_not_end_there(tmp_path) -> None:
    path = tmp_path / "spells.txt"
    path.write_text(f"before {END_TOKEN} after")
    data = train_tokenizer((path,), 300)
    assert np.flatnonzero(tokenize((path,), data) == END_TOKEN_ID).size == 1


def test_a_long_file_is_read_in_pieces_and_loses_nothing(tmp_path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"line {number} of many\n" for number in range(40_000)))
    data = train_tokenizer((path,), 280)
    stream = tokenize((path,), data)
    assert Tokenizer.from_str(data.decode()).decode(stream[:-1].tolist()) == path.read_text()


def test_no_files_give_an_empty_stream(folder) -> None:
    assert tokenize((), train_tokenizer(folder_texts(folder), 300)).shape == (0,)


def test_too_little_text_says_how_much_there_is_and_how_much_is_needed(folder) -> None:
    with pytest.raises(TextError, match=r"3,611 bytes in 12 files and this run needs 1,000,000") as caught:
        require_bytes(folder_texts(folder), 1_000_000)
    assert caught.value.exit_code == 3
    require_bytes(folder_texts(folder), 3_000)


@pytest.mark.parametrize("name", ["missing", "a/00.txt"])
def test_what_is_not_a_folder_is_refused(folder, name) -> None:
    with pytest.raises(TextError, match="is not a folder"):
        folder_texts(folder / name)


def test_a_file_that_vanishes_or_is_no_text_is_named(folder, tmp_path) -> None:
    files = folder_texts(folder)
    data = train_tokenizer(files, 300)
    files[3].unlink()
    for use in (lambda: tokenize(files, data), lambda: train_tokenizer(files, 300), lambda: require_bytes(files, 1)):
        with pytest.raises(TextError, match=rf"{files[3].name} cannot be read \(No such file"):
            use()
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(TextError, match="binary is not UTF-8 text"):
        tokenize((binary,), data)


def test_a_vocabulary_that_cannot_hold_all_bytes_is_refused(folder) -> None:
    with pytest.raises(ConfigError, match="at least 257"):
        train_tokenizer(folder_texts(folder), 256)
    assert Tokenizer.from_str(train_tokenizer(folder_texts(folder), 257).decode()).get_vocab_size() == 257
