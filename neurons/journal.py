"""What a validator keeps of a window that it has not closed yet, so that a restart in the middle loses nothing.

It is written after the snapshot, which no second process could take again, and after each reading of keys. Sealed
shards stay in the spool; payloads are opened again. What is not here can be found again: the manifest in the ledger,
losses and gains by judging once more.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from neurons.durable import read_document, write_document
from protocol.errors import DocumentError, Reason, Rejected
from protocol.gauntlet.checks import StaleBase
from protocol.identity import Address, Digest, Document
from protocol.ledger.manifest import Uid
from protocol.sealing import Seal
from protocol.window import WindowNumber

log = logging.getLogger(__name__)

_FILE = "window.json"


class Kept(Document):
    """What was known of one peer. `location` is its commitment, in hexadecimal; `key` the key that it had revealed."""

    uid: Uid
    hotkey: Address
    location: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,128}$"), Field(repr=False)]
    seal: Seal | None
    stored_at: float | None
    key: Annotated[Digest | None, Field(repr=False)]
    reason: Annotated[Reason, Field(strict=False)] | None
    detail: str
    steps_behind: int

    def rejected(self) -> Rejected | None:
        """Why it did not count, as it was raised."""
        if self.reason is None:
            return None
        if self.steps_behind:
            return StaleBase(self.steps_behind, self.detail)
        return Rejected(self.reason, self.detail)


class Journal(Document):
    """One window. `departed` are slots whose hotkey had left them at the snapshot; `over` says whether the reveal
    deadline had passed, after which no key counts any more."""

    run_digest: Digest
    window: WindowNumber
    departed: tuple[Uid, ...]
    over: bool
    entries: tuple[Kept, ...]


def write_journal(folder: Path, journal: Journal) -> None:
    """Keep `journal` in the node's `folder` instead of the last one. Raises `DiskUnusable`."""
    write_document(folder / _FILE, journal)


def read_journal(folder: Path, run_digest: str) -> Journal | None:
    """The journal in `folder`, if there is one of this run that is whole. One that is not costs a window at most.
    Raises `DiskUnusable`."""
    try:
        journal = read_document(folder / _FILE, Journal)
    except DocumentError as error:
        log.warning("%s; its window starts anew", error)
        return None
    return journal if journal is not None and journal.run_digest == run_digest else None
