"""What must hold of a network whose processes have ended, whatever happened to it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from neurons.audit.report import Report
from neurons.audit.walk import audit
from neurons.documents import Documents
from neurons.folder import Places, is_held
from neurons.onlooker import Onlooker, onlooker
from neurons.settings import load_viewpoint
from protocol.chain.local import LocalChain
from protocol.window import window_of
from storage.checkpoint import complete_windows
from storage.keys import WINDOW_LIMIT

_ALLOWED = ("has no receipts", "branch that was left")
"""What is in the gaps that may be there: a validator that was killed between leading a window and judging it has no
receipts of it; and what one wrote on a branch that lost may stay in its bucket."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was looked at, and a sentence for everything that is wrong."""

    payloads: int
    scores: int
    failures: tuple[str, ...]


def look(
    say: Callable[[str], None], folder: Path, roots: Mapping[str, Mapping[int, str]], pids: Iterable[int]
) -> Verdict:
    """Look at the network in `folder`, whose neurons said that they hold `roots` (by name and window), and whose
    processes had these ids."""
    failures = [*orphans(pids), *locks(folder), *leftovers(folder)]
    report, ledger = asyncio.run(_replay(folder))
    failures += [f"audit: {sentence}" for sentence in report.sentences()]
    failures += [f"audit: {gap.words}" for gap in report.gaps if not any(w in gap.words for w in _ALLOWED)]
    failures += [f"audit: window {each.window} was not replayed" for each in report.windows if not each.root_checked]
    failures += differences(roots, ledger)
    payloads, scores = (sum(getattr(window, name) for window in report.windows) for name in ("payloads", "scores"))
    return Verdict(payloads, scores, tuple(failures))


async def _replay(folder: Path) -> tuple[Report, dict[int, str]]:
    """A fault-free replay of the ledger, as anybody makes it who may read the buckets, from the oldest state that is
    kept; and the root of each window, which the replay has compared."""
    view = load_viewpoint({"dir": folder}, {}, folder)
    async with onlooker(view) as looking:
        with tempfile.TemporaryDirectory(prefix="windrow-campaign-") as spool:
            begin = await _oldest_state(looking)
            report = await audit(looking, begin, None, True, Path(spool), lambda _: None)
        documents = Documents(looking.run, looking.chain, looking.open_bucket)
        sources, _ = await documents.sources(await looking.chain.neurons())
        ledger: dict[int, str] = {}
        for window in report.windows:
            for source in sources:
                if (manifest := await documents.manifest(window.window, source)) is not None:
                    ledger[window.window] = manifest.root
                    break
        return report, ledger


async def _oldest_state(looking: Onlooker) -> int:
    """The oldest state from which every payload must still be there: none older than retention keeps them, though a
    validator that missed a checkpoint may have kept one longer."""
    run = looking.run
    head = window_of((await looking.chain.head()).number, run.time)
    kept = head - run.checkpoints.every_windows * run.checkpoints.keep
    if kept <= run.time.first_window:
        return run.time.first_window
    documents = Documents(run, looking.chain, looking.open_bucket)
    sources, _ = await documents.sources(await looking.chain.neurons())
    found: list[int] = []
    for source in sources:
        found += await complete_windows(source.bucket, documents.keys, before_window=WINDOW_LIMIT)
    return min(window for window in found if window >= kept)


def differences(roots: Mapping[str, Mapping[int, str]], ledger: Mapping[int, str]) -> Iterator[str]:
    """Neurons that hold another state than the replay of the ledger gives, or none that it knows."""
    for name, held in roots.items():
        known = held.keys() & ledger.keys()
        if not known:
            yield f"{name} says of no window that the ledger has which state it holds"
        for window in sorted(known):
            if held[window] != ledger[window]:
                yield f"{name} holds {held[window]} in window {window}, a replay of the ledger gives {ledger[window]}"


def orphans(pids: Iterable[int]) -> Iterator[str]:
    """Processes that should have ended."""
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":  # its parent, the fork server, has not looked yet
            yield f"process {pid} is still running"


def locks(folder: Path) -> Iterator[str]:
    """What a process that is gone still holds."""
    for node in sorted(Places(folder).nodes.iterdir()):
        if is_held(node):
            yield f"{node.name} is still held"
    chain = LocalChain.open(Places(folder).chain)
    try:
        chain.produce_block(asyncio.run(chain.head()).timestamp)  # raises if the file is locked
    finally:
        asyncio.run(chain.close())
    for rest in sorted(folder.glob("chain.sqlite-*")):
        yield f"{rest.name} is left of the chain"


def leftovers(folder: Path) -> Iterator[str]:
    """Temporary files, of which every writer takes names that no object and no state has."""
    for place in (Places(folder).buckets, Places(folder).nodes):
        for path in sorted(place.rglob("*")):
            # A sealed shard that is still on its way to a spool has a name that is more than its digest.
            is_partial = path.name[0] in "~." or (path.parent.name == "sealed" and "." in path.name)
            if path.is_file() and is_partial:
                yield f"{path.relative_to(folder)} is a temporary file"
