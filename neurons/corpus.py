"""Text that is at hand, as tokens: which files, a tokenizer trained on them, and the token stream.

Files come in the order of the BLAKE3 digests of their relative paths. That order is the same on every machine
and mixes the folders, so that the tail of the corpus, which is held out, is of the same kind as the rest.
"""

from __future__ import annotations

import codecs
import itertools
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from blake3 import blake3
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from neurons.errors import ConfigError, TextError

END_TOKEN = "<|end|>"
END_TOKEN_ID = 0
"""Follows every file in the token stream."""

SMALLEST_VOCABULARY = 257
"""256 bytes and the end token: with fewer, some text could not be written."""

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_PIECE_CHARACTERS = 1 << 18
_BATCH_PIECES = 64


def standard_library_texts() -> tuple[Path, ...]:
    """The .py files of the running Python's standard library without its tests: about 730 files and 12 MB, a
    little different in each Python release."""
    root = Path(sysconfig.get_path("stdlib"))
    return _mixed(root, [path for path in _files(root, _NOT_LIBRARY) if path.suffix == ".py"])


def folder_texts(folder: Path) -> tuple[Path, ...]:
    """The regular files under `folder` that are UTF-8 text; hidden ones, links and binary files are left out.

    Raises `TextError` when `folder` is not a folder or something in it cannot be read.
    """
    if not folder.is_dir():
        raise TextError(f"{folder} is not a folder: pass a folder of text files")
    visible = [path for path in _files(folder, frozenset()) if not path.name.startswith(".")]
    return _mixed(folder, [path for path in visible if _is_text(path)])


def require_bytes(files: Sequence[Path], needed_bytes: int) -> None:
    """Raise `TextError` unless `files` hold `needed_bytes` together."""
    try:
        found = sum(path.stat().st_size for path in files)
    except OSError as error:
        raise _unreadable(error) from error
    if found < needed_bytes:
        raise TextError(
            f"the text has {found:,} bytes in {len(files):,} files and this run needs {needed_bytes:,}: add text"
        )


def train_tokenizer(files: Sequence[Path], vocab_size: int) -> bytes:
    """A byte-level BPE of at most `vocab_size` tokens as the JSON of the tokenizers library, UTF-8.

    The same texts in the same order give the same bytes. Raises `ConfigError` when `vocab_size` is below
    `SMALLEST_VOCABULARY`, `TextError` for a file that cannot be read.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(f"vocab_size is {vocab_size}: a byte-level tokenizer needs at least {SMALLEST_VOCABULARY}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces = (piece for path in files for piece in _pieces(path))
    tokenizer.train_from_iterator(pieces, trainer)
    return tokenizer.to_str().encode()


def tokenize(files: Sequence[Path], tokenizer: bytes) -> np.ndarray:
    """The texts of `files` in order as one stream of token ids: uint32, shape [T], the end token after each file.

    `tokenizer` is what `train_tokenizer` returned. Raises `TextError` for a file that cannot be read.
    """
    encoder = Tokenizer.from_str(tokenizer.decode())
    encoder.encode_special_tokens = True  # a file that spells the end token does not end there
    streams = (itertools.chain(_pieces(path), (None,)) for path in files)
    parts: list[np.ndarray] = []
    for batch in _batches(itertools.chain.from_iterable(streams), _BATCH_PIECES):
        encoded = iter(encoder.encode_batch_fast([piece for piece in batch if piece is not None]))
        for piece in batch:
            parts.append(np.array([END_TOKEN_ID] if piece is None else next(encoded).ids, dtype=np.uint32))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)


def _batches(pieces: Iterator[str | None], size: int) -> Iterator[list[str | None]]:
    while batch := list(itertools.islice(pieces, size)):
        yield batch


def _files(root: Path, without: frozenset[str]) -> list[Path]:
    """Regular files under `root`; no links, and no folder that is hidden or named in `without`."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
        paths = (Path(folder, name) for name in names)
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return found


def _mixed(root: Path, paths: list[Path]) -> tuple[Path, ...]:
    def place(path: Path) -> tuple[bytes, str]:
        relative = path.relative_to(root).as_posix()
        return blake3(os.fsencode(relative)).digest(), relative

    return tuple(sorted(paths, key=place))


def _is_text(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                if b"\0" in block:
                    return False
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    except OSError as error:
        raise _unreadable(error) from error
    return True


def _pieces(path: Path) -> Iterator[str]:
    """The text of `path` in whole lines, about `_PIECE_CHARACTERS` at a time, so that memory stays bounded."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            while lines := file.readlines(_PIECE_CHARACTERS):
                yield "".join(lines)
    except OSError as error:
        raise _unreadable(error) from error
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text: remove it or convert it") from error


def _raise_unreadable(error: OSError) -> None:
    raise _unreadable(error) from error


def _unreadable(error: OSError) -> TextError:
    return TextError(f"{error.filename} cannot be read ({error.strerror}): make it readable or leave it out")
