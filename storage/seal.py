"""Encryption of payload shards until the reveal (protocol §10): AES-256-GCM, one message a shard.

The nonce of a shard is its number. That is safe because nonces must differ only under one key, and a key is made
fresh for one payload: no key ever meets two plaintexts with one number. Whoever seals a second, different payload
must draw a second key; sealing the same bytes again under the same key gives the same ciphertext and harms
nothing.

The associated data binds run, window and hotkey, so a copied ciphertext does not open under the copier's hotkey.
AES-GCM alone does not bind a ciphertext to one key; the BLAKE3 of the key in the signed `seal.json` does.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage.errors import SealError
from storage.keys import SHARD_LIMIT, is_hotkey

SEAL_KEY_BYTES = 32
SEAL_OVERHEAD_BYTES = 16
"""A sealed shard is this much longer than the plain one: the authentication tag, at its end."""

SHARD_LIMIT_BYTES = 2**31 - 1 - SEAL_OVERHEAD_BYTES
"""Longest plain shard; the library counts in 31 bits."""

_NONCE_BYTES = 12
_RUN_DIGEST_BYTES = 32
_WINDOW_BYTES = 8


def associated_data(run_digest: bytes, window: int, hotkey: str) -> bytes:
    """What a shard is bound to: `run_digest` (32 bytes) ‖ `window` (u64 little-endian) ‖ `hotkey` (ss58, ASCII).

    Only the last field varies in length, so no two triples share an encoding. Raises `SealError` when a field
    is not one.
    """
    if len(run_digest) != _RUN_DIGEST_BYTES:
        raise SealError(f"a run digest has {_RUN_DIGEST_BYTES} bytes, not {len(run_digest)}")
    if not 0 <= window < 2**64:
        raise SealError(f"window {window} does not fit 64 bits")
    if not is_hotkey(hotkey):
        raise SealError(f"{hotkey!r} is not an ss58 address")
    return run_digest + window.to_bytes(_WINDOW_BYTES, "little") + hotkey.encode("ascii")


def encrypt_shard(key: bytes, index: int, associated: bytes, plain: bytes) -> bytes:
    """Seal shard number `index` with `key` (32 bytes, used for one payload only); `SEAL_OVERHEAD_BYTES` longer
    than `plain`. Raises `SealError` on a key, number or length out of bounds."""
    if len(plain) > SHARD_LIMIT_BYTES:
        raise SealError(f"a shard may have {SHARD_LIMIT_BYTES} bytes, this one has {len(plain)}: cut it smaller")
    return _cipher(key).encrypt(_nonce(index), plain, associated)


def decrypt_shard(key: bytes, index: int, associated: bytes, sealed: bytes) -> bytes:
    """Open a shard; raises `SealError` unless key, number, associated data and every byte are those it was sealed
    with."""
    if not SEAL_OVERHEAD_BYTES <= len(sealed) <= SHARD_LIMIT_BYTES + SEAL_OVERHEAD_BYTES:
        raise SealError(f"sealed shard {index} has an impossible length, {len(sealed)} bytes")
    try:
        return _cipher(key).decrypt(_nonce(index), sealed, associated)
    except InvalidTag as error:
        raise SealError(f"shard {index} does not open with this key for this run, window and hotkey") from error


def _cipher(key: bytes) -> AESGCM:
    if len(key) != SEAL_KEY_BYTES:
        raise SealError(f"a seal's key has {SEAL_KEY_BYTES} bytes, not {len(key)}")
    return AESGCM(key)


def _nonce(index: int) -> bytes:
    if not 0 <= index < SHARD_LIMIT:
        raise SealError(f"shard {index} is not one: shards are numbered 0 to {SHARD_LIMIT - 1}")
    return index.to_bytes(_NONCE_BYTES, "little")
