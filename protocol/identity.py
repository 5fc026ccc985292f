"""Digests, canonical JSON and signed documents (protocol §4).

A document is a frozen pydantic model. Its canonical form is JSON with sorted keys, no white space, UTF-8,
and floats in Python's shortest round-trip form; its digest is BLAKE3 over that. A signature covers the
32 digest bytes of the document without its `signature` field.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from bittensor_core import Keypair
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from protocol.errors import DocumentError

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes of BLAKE3 as 64 lower-case hexadecimal digits."""

Address = Annotated[str, StringConstraints(pattern=r"^[1-9A-HJ-NP-Za-km-z]{46,50}$")]
"""An ss58 address. The character set has no `/` or `.`, so an address is also a safe part of an object key."""

Signature = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{128})?$")]


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value; raises `ValueError` on NaN and infinity, which JSON cannot carry."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(data: bytes) -> str:
    """BLAKE3 of `data` as 64 hexadecimal digits."""
    return blake3(data).hexdigest()


def public_key(address: str) -> bytes:
    """The 32-byte sr25519 public key behind an ss58 address; `DocumentError` if it is not one."""
    try:
        return bytes(Keypair(ss58_address=address).public_key)
    except ValueError as error:
        raise DocumentError(f"{address!r} is not an ss58 address") from error


class Document(BaseModel):
    """Base of everything that is published as JSON. Unknown fields and loose types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    def canonical(self) -> bytes:
        """Canonical JSON of the whole document: the bytes that are published."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a document from published bytes; `DocumentError` says which field is wrong."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            # Names of unknown fields are the peer's own text: it reaches logs and screens neither raw nor at length.
            where = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:80] or "document"
            raise DocumentError(f"{cls.__name__}: {where}: {first['msg']}") from error


class SignedDocument(Document):
    """A document with the address of its signer and the signature over everything else."""

    signer: Address
    signature: Signature = ""

    def digest(self) -> str:
        """BLAKE3 of the canonical form without the signature: what is signed, and what others refer to."""
        return digest_of(canonical_json(self.model_dump(mode="json", exclude={"signature"})))

    def signed(self, key: Keypair) -> Self:
        """This document signed by `key`, whose address must be `signer`."""
        if key.ss58_address != self.signer:
            raise DocumentError(f"the document names {self.signer} as signer, the key is {key.ss58_address}")
        return self.model_copy(update={"signature": bytes(key.sign(bytes.fromhex(self.digest()))).hex()})

    def verify(self, signer: str | None = None) -> None:
        """Raise `DocumentError` unless the signature holds and, where given, the signer is the expected one."""
        if signer is not None and self.signer != signer:
            raise DocumentError(f"signed by {self.signer}, expected {signer}")
        public_key(self.signer)  # a document error, not a ValueError, if the address is none
        signature = bytes.fromhex(self.signature)
        if not signature or not Keypair(ss58_address=self.signer).verify(bytes.fromhex(self.digest()), signature):
            raise DocumentError(f"{type(self).__name__}: the signature of {self.signer} does not verify")
