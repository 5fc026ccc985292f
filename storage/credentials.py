"""Access keys of a store, held so that they cannot be shown by accident.

Whatever prints, formats, logs, dumps or walks over a `Secret` gets a fixed mask. `reveal` is the only way to the
text; who calls it must not bind the result to a name, because a crash report may show the locals of every frame.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from storage.errors import BadCredentials

MASK = "(secret)"
"""What stands for every secret wherever it would be shown. It does not tell the length."""

_KEY_ID = re.compile(r"[!-+.0-~\-]{1,128}")
"""Printable ASCII without the comma and the slash, which end a key id in the header that carries it."""


class Secret:
    """A text that only `reveal` gives back. Two secrets are compared in a time that does not depend on where they
    differ; the hash is the same for all. It cannot be pickled: a secret stays in the process that read it.

    The text is kept in a closure rather than in an attribute: what walks over attributes or slots finds a
    function.
    """

    __slots__ = ("reveal",)

    reveal: Callable[[], str]
    """The text itself."""

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "reveal", lambda: text)

    def __repr__(self) -> str:
        return MASK

    def __format__(self, specification: str) -> str:
        return MASK

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a secret cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a secret cannot be changed")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes(self), _bytes(other))

    def __hash__(self) -> int:
        return hash(Secret)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not pickled: pass on where to read it instead")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """As a field: a non-empty text or a `Secret` in, the mask out."""
        return core_schema.no_info_plain_validator_function(
            _validated, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


@dataclass(frozen=True, slots=True)
class Credentials:
    """One access key of a store. Raises `BadCredentials` when `key_id` is not one or the secret is empty."""

    key_id: str
    secret: Secret

    def __post_init__(self) -> None:
        if not _KEY_ID.fullmatch(self.key_id):
            # Not shown: people paste the two keys in the wrong order.
            raise BadCredentials("the access key id must be 1-128 printable ASCII characters without space , and /")
        if self.secret == Secret(""):
            raise BadCredentials("the secret access key is empty: give the one that belongs to the access key id")


def _bytes(secret: Secret) -> bytes:
    return secret.reveal().encode("utf-8", "surrogatepass")


def _validated(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("secret", "must be a text that is not empty")
    return Secret(value)
