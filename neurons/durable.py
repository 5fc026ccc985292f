"""Local state that is there whole or not at all, also after `kill -9`, a full disk or a power cut.

A file is written beside the one that it replaces, under a name that is always the same: a node's folder belongs to one
process (`neurons.folder.held`), so what a killed one left half-written is overwritten by the next. It is on the disk
before it takes its name, and its name is on the disk before anything that depends on it is published.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from protocol.errors import DocumentError
from protocol.identity import Document, digest_of
from storage.errors import DiskUnusable

AnyDocument = TypeVar("AnyDocument", bound=Document)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Where to write in the block what takes the place of the file at `path` at its end. If the block fails, the file
    stays as it was. Raises `DiskUnusable`, also for an `OSError` of the block."""
    partial = path.with_name(f"~{path.name}")
    try:
        yield partial
        _force(partial)
        rename(partial, path)
    except OSError as error:
        raise DiskUnusable(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def rename(path: Path, new: Path) -> None:
    """Let the file at `path` take the place of the one at `new`, which is beside it. Raises `DiskUnusable`."""
    try:
        path.replace(new)
        _force(new.parent)
    except OSError as error:
        raise DiskUnusable(f"{new} cannot be written: {error.strerror}") from error


def write_document(path: Path, document: Document) -> None:
    """Replace the file at `path` by `document` and its digest. Raises `DiskUnusable`."""
    data = document.canonical()
    with replaced(path) as partial:
        partial.write_bytes(digest_of(data).encode() + b"\n" + data)


def read_document(path: Path, kind: type[AnyDocument]) -> AnyDocument | None:
    """What `write_document` wrote; None if nothing is there. Raises `DocumentError` when it is not what was written, a
    rotten disk's bit say: then it is set aside. Raises `DiskUnusable` when it cannot be read."""
    try:
        digest, _, data = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DiskUnusable(f"{path} cannot be read: {error.strerror}") from error
    try:
        if digest_of(data).encode() != digest:
            raise DocumentError("it does not have the digest that it begins with")
        return kind.parse(data)
    except DocumentError as error:
        raise DocumentError(f"{path} is damaged and kept as {set_aside(path).name}: {error}") from error


def set_aside(path: Path) -> Path:
    """Give a file that is damaged another name, in place of one that had it before, so that nobody takes it for what it
    was and somebody can look at it. Returns where it is now. Raises `DiskUnusable`."""
    aside = path.with_name(f"{path.name}.damaged")
    rename(path, aside)
    return aside


def _force(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
