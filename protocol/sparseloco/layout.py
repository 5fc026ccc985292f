"""How the parameters of a model lie in one flat fp32 array, and how they are cut into chunks (protocol §8)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import LayoutError
from protocol.identity import canonical_json, digest_of

CHUNK = 4096
"""Consecutive elements of a flattened parameter that share one top-k and one pair of levels."""

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor: `size` elements from `offset` in the flat array, row-major."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def chunks(self) -> int:
        """Number of full chunks."""
        return self.size // CHUNK

    @property
    def tail(self) -> int:
        """Elements after the last full chunk; 0 if there are none."""
        return self.size % CHUNK


@dataclass(frozen=True)
class Layout:
    """All parameters in order, without gaps. Equal layouts have equal digests."""

    parameters: tuple[Parameter, ...]

    def __hash__(self) -> int:
        return hash(self.digest)  # computed once, where hashing every parameter costs as much as a small payload

    @classmethod
    def from_shapes(cls, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Layout:
        """Build from (name, shape) pairs; `LayoutError` for no tensors, empty tensors or a name given twice."""
        parameters, offset = [], 0
        for name, shape in shapes:
            size = math.prod(shape)
            if size < 1:
                raise LayoutError(f"parameter {name!r} has no elements: shape {shape}")
            parameters.append(Parameter(name, tuple(shape), offset, size))
            offset += size
        if not parameters or len({p.name for p in parameters}) != len(parameters):
            raise LayoutError("a layout needs at least one parameter, each with its own name")
        return cls(tuple(parameters))

    @cached_property
    def size(self) -> int:
        """Elements of the flat array."""
        return sum(p.size for p in self.parameters)

    @cached_property
    def digest(self) -> str:
        """BLAKE3 of the canonical JSON list of [name, shape]."""
        return digest_of(canonical_json([[p.name, list(p.shape)] for p in self.parameters]))

    def check(self, flat: Any) -> None:
        """Raise `LayoutError` unless `flat`, a NumPy array or a torch tensor, is contiguous fp32 of this size."""
        contiguous = flat.flags.c_contiguous if isinstance(flat, np.ndarray) else flat.is_contiguous()
        if str(flat.dtype).removeprefix("torch.") != "float32" or flat.shape != (self.size,) or not contiguous:
            raise LayoutError(f"expected {self.size} contiguous float32, got {flat.dtype} {flat.shape}")

    def tensors(self, flat: F32) -> dict[str, F32]:
        """Views of `flat`, one per parameter, in its shape."""
        self.check(flat)
        return {p.name: flat[p.offset : p.offset + p.size].reshape(p.shape) for p in self.parameters}
