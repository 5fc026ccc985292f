"""The names of a run's objects (protocol §6). Every key a node asks for is made here, from checked values.

Windows are padded to eight digits, so that a list, which is in key order, is in window order too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.bucket import check_key
from storage.errors import BadKey

WINDOW_LIMIT = 10**8
"""Windows are below this: eight digits."""

SHARD_LIMIT = 10**5
"""Shard numbers are below this: five digits."""

_RUN = re.compile(r"[0-9a-f]{16}")
# Base58 has neither `/` nor `.`, so an address that passes is one plain part of a key.
_HOTKEY = re.compile(r"[1-9A-HJ-NP-Za-km-z]{46,50}")
_WINDOW = re.compile(r"[0-9]{8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Keys:
    """Object names of one run. `run` is the first 16 hexadecimal digits of the run digest. Every method raises
    `BadKey` when a window, hotkey (ss58), shard number or name is not one."""

    run: str

    def __post_init__(self) -> None:
        if not _RUN.fullmatch(self.run):
            raise BadKey(f"{self.run!r} is not the first 16 hexadecimal digits of a run digest")

    def run_toml(self) -> str:
        """The constants of the run."""
        return f"{self.run}/run.toml"

    def window_prefix(self, window: int) -> str:
        """What the keys of all seals, shards and reveals of `window` begin with."""
        return f"{self.run}/{_window(window)}/"

    def seal(self, window: int, hotkey: str) -> str:
        """The signed commitment to a payload (§10)."""
        return f"{self._of_peer(window, hotkey)}/seal.json"

    def shard(self, window: int, hotkey: str, index: int) -> str:
        """One encrypted shard of a payload (§10)."""
        if not 0 <= index < SHARD_LIMIT:
            raise BadKey(f"shard {index} is not one: shards are numbered 0 to {SHARD_LIMIT - 1}")
        return f"{self._of_peer(window, hotkey)}/shard-{index:05d}"

    def key(self, window: int, hotkey: str) -> str:
        """The reveal: the key that opens the shards (§10)."""
        return f"{self._of_peer(window, hotkey)}/key.json"

    def manifest(self, window: int) -> str:
        """What was applied in `window` (§12): the manifest that the owner of the bucket follows."""
        return f"{self.run}/ledger/{_window(window)}.json"

    def manifest_of(self, window: int, digest: str) -> str:
        """The manifest with this digest, followed or not, as long as it may still matter."""
        if not _DIGEST.fullmatch(digest):
            raise BadKey(f"{digest!r} is no digest")
        return f"{self.manifests_prefix()}{_window(window)}/{digest}.json"

    def manifests_prefix(self) -> str:
        """What the keys of all manifests by digest begin with."""
        return f"{self.run}/manifests/"

    def ballots(self) -> str:
        """What a validator has signed and seen of the ballots that still matter (§12)."""
        return f"{self.run}/ballots.json"

    def evidence(self, window: int, hotkey: str, kind: str) -> str:
        """Two documents of one key that contradict each other. `kind` is one plain word."""
        if not is_hotkey(hotkey):
            raise BadKey(f"{hotkey!r} is not an ss58 address")
        key = f"{self.evidence_prefix()}{_window(window)}/{hotkey}-{kind}.json"
        check_key(key)
        return key

    def evidence_prefix(self) -> str:
        """What the keys of all evidence begin with."""
        return f"{self.run}/evidence/"

    def ledger_head(self) -> str:
        """Pointer to the newest manifest."""
        return f"{self.run}/ledger/head.json"

    def receipts(self, window: int) -> str:
        """How each uid was judged in `window` (§14)."""
        return f"{self.run}/receipts/{_window(window)}.json"

    def receipts_head(self) -> str:
        """Pointer to the newest receipts."""
        return f"{self.run}/receipts/head.json"

    def checkpoint(self, window: int, name: str) -> str:
        """One object of the checkpoint of the state at the start of `window` (§15). `name` is one plain part."""
        if "/" in name:
            raise BadKey(f"{name!r} is not the name of a checkpoint's object: it holds a slash")
        key = f"{self.checkpoint_prefix()}{_window(window)}/{name}"
        check_key(key)
        return key

    def checkpoint_prefix(self) -> str:
        """What the keys of all checkpoints begin with."""
        return f"{self.run}/checkpoints/"

    def checkpoint_latest(self) -> str:
        """Pointer to the newest complete checkpoint."""
        return f"{self.checkpoint_prefix()}latest.json"

    def window_of(self, key: str) -> int | None:
        """The window of a seal, shard or reveal of this run; None for every other key, the ledger's too."""
        return _window_after(f"{self.run}/", key)

    def manifest_window_of(self, key: str) -> int | None:
        """The window of a manifest by digest; None for every other key."""
        return _window_after(self.manifests_prefix(), key)

    def checkpoint_window_of(self, key: str) -> int | None:
        """The window of a checkpoint's object; None for every other key, the pointer's too."""
        return _window_after(self.checkpoint_prefix(), key)

    def _of_peer(self, window: int, hotkey: str) -> str:
        if not is_hotkey(hotkey):
            raise BadKey(f"{hotkey!r} is not an ss58 address")
        return f"{self.window_prefix(window)}{hotkey}"


def is_hotkey(text: str) -> bool:
    """Whether `text` looks like an ss58 address; that its checksum holds is for the signature check to say."""
    return _HOTKEY.fullmatch(text) is not None


def _window(window: int) -> str:
    if not 0 <= window < WINDOW_LIMIT:
        raise BadKey(f"window {window} is not one: windows are numbered 0 to {WINDOW_LIMIT - 1}")
    return f"{window:08d}"


def _window_after(prefix: str, key: str) -> int | None:
    if not key.startswith(prefix):
        return None
    part, slash, _ = key[len(prefix) :].partition("/")
    return int(part) if slash and _WINDOW.fullmatch(part) else None
