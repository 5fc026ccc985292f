"""Which manifests count, by the votes that validators show, and who has signed what contradicts itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from neurons.documents import Documents, Source
from neurons.ledger import Ledger
from neurons.onlooker import Onlooker
from protocol.errors import DocumentError, LedgerError
from protocol.ledger.evidence import EVIDENCE_LIMIT_BYTES, Evidence, check_evidence
from storage.errors import StorageError

log = logging.getLogger(__name__)

_MOST_EVIDENCE = 1000
"""How much evidence of one validator is looked at: it may hold as much as it likes."""


async def open_ledger(look: Onlooker, sources: Sequence[Source], sealed_sizes: Sequence[int], folder: Path) -> Ledger:
    """The ledger as an onlooker sees it, from the newest certificate on. Raises `ContradictionError`, `ChainError`."""

    async def listed() -> Sequence[Source]:
        return sources

    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(look.run, look.chain, folder, sealed_sizes, listed, lambda sentence: log.info("%s", sentence))
    try:
        await ledger.begin(look.chain.block_seconds)
    finally:
        await ledger.close()
    return ledger


async def read_evidence(documents: Documents, sources: Sequence[Source]) -> dict[int, list[Evidence]]:
    """What validators have published against others, as far as it proves what it says: by window, each once."""
    found: dict[tuple[int, str, str], Evidence] = {}
    for source in sources:
        try:
            names = []
            async for info in source.bucket.list(documents.keys.evidence_prefix()):
                names.append(info.key)
                if len(names) == _MOST_EVIDENCE:
                    break
            for name in names:
                data = await source.bucket.get(name, limit_bytes=EVIDENCE_LIMIT_BYTES)
                try:
                    evidence = Evidence.parse(data)
                    check_evidence(evidence, documents.run)
                except (DocumentError, LedgerError) as error:
                    log.info("%s of uid %d is no evidence: %s", name, source.uid, error)
                    continue
                found.setdefault((evidence.window, evidence.signer, evidence.kind), evidence)
        except StorageError as error:  # who only lets be read what one can name shows none
            log.info("the evidence of uid %d was not looked at: %s", source.uid, error)
    by_window: dict[int, list[Evidence]] = {}
    for (window, _, _), evidence in sorted(found.items()):
        by_window.setdefault(window, []).append(evidence)
    return by_window
