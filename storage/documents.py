"""Reading and writing the JSON objects of this room: strict in, one byte form out."""

from __future__ import annotations

import json
from typing import Annotated, Self

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from storage.errors import StorageError

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes of BLAKE3 as 64 lower-case hexadecimal digits."""


class StoredDocument(BaseModel):
    """Base of what is stored as JSON. Unknown fields and loose types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """JSON with sorted keys and no white space, ASCII."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes, what: str, error: type[StorageError]) -> Self:
        """Read `data`; raises `error` with a sentence that names `what` and the field that is wrong."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as invalid:
            first = invalid.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise error(f"{what} is malformed: {where}: {first['msg']}") from invalid


def digest_of(data: bytes) -> str:
    """BLAKE3 of `data` as 64 hexadecimal digits."""
    return blake3(data).hexdigest()
