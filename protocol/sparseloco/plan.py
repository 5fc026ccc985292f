"""Where the chunks of a layout and their records lie: known from the run alone, the same for every payload."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.run import SparseLoCo
from protocol.sparseloco.layout import CHUNK, Layout
from protocol.sparseloco.records import RecordFormat

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

Elements = Any
"""fp32 elements: a NumPy array in the host's memory, or a tensor on a GPU."""


@dataclass(frozen=True, slots=True)
class Group:
    """`count` consecutive chunks of one parameter with the same format: from element `offset` in the flat array, from
    byte `start` among the records, and from number `first` among the values that are sent."""

    parameter: int
    offset: int
    start: int
    first: int
    count: int
    format: RecordFormat

    @property
    def elements(self) -> int:
        """Elements of all its chunks."""
        return self.count * self.format.length

    @property
    def size_bytes(self) -> int:
        """Bytes of all its records."""
        return self.count * self.format.size_bytes

    @property
    def values(self) -> int:
        """Values sent for it."""
        return self.count * self.format.k

    def chunks(self, flat: Elements) -> Elements:
        """Its elements of the flat array, as a view [count, length]."""
        return flat[self.offset : self.offset + self.elements].reshape(self.count, self.format.length)

    def records(self, body: U8) -> U8:
        """Its records of a body, as a view uint8 [count, size_bytes]."""
        return body[self.start : self.start + self.size_bytes].reshape(self.count, self.format.size_bytes)

    def sent(self, values: Elements) -> Elements:
        """Its part of an array with an element for each value that is sent, as a view [count, k]."""
        return values[self.first : self.first + self.values].reshape(self.count, self.format.k)

    def cut(self, elements: int) -> Iterator[Group]:
        """The group in parts of about `elements` elements, at least a chunk each."""
        step = max(1, elements // self.format.length)
        for first in range(0, self.count, step):
            yield replace(
                self,
                offset=self.offset + first * self.format.length,
                start=self.start + first * self.format.size_bytes,
                first=self.first + first * self.format.k,
                count=min(step, self.count - first),
            )


@dataclass(frozen=True, eq=False)
class Plan:
    """All groups of a layout in wire order: for each parameter its full chunks, then its tail."""

    groups: tuple[Group, ...]

    @cached_property
    def elements(self) -> int:
        """Elements of the flat array."""
        return sum(group.elements for group in self.groups)

    @cached_property
    def body_bytes(self) -> int:
        """Exact size of the records of one payload."""
        return sum(group.size_bytes for group in self.groups)

    @cached_property
    def values(self) -> int:
        """Values of one payload."""
        return sum(group.values for group in self.groups)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the layout."""
        return 1 + self.groups[-1].parameter

    @cached_property
    def longest(self) -> int:
        """Elements of the largest chunk."""
        return max(group.format.length for group in self.groups)

    @cached_property
    def largest_k(self) -> int:
        """Most values of one chunk."""
        return max(group.format.k for group in self.groups)

    def end(self, slack_bytes: int) -> int:
        """First byte of the first record behind which fewer than `slack_bytes` follow."""
        start = self.body_bytes
        for group in reversed(self.groups):
            for _ in range(group.count):
                if self.body_bytes - start >= slack_bytes:
                    return start
                start -= group.format.size_bytes
        return start

    def batches(self, elements: int) -> tuple[I64, ...]:
        """The groups in batches of about `elements` elements, each a table for compiled code: int64 [groups, 11], the
        fields of `kernels.jit.Row`."""
        return _batches(self, elements)


def plan_of(layout: Layout, scheme: SparseLoCo) -> Plan:
    """The plan of a layout in a run."""
    return _plan(layout, scheme.k, scheme.value_bits)


@lru_cache(maxsize=8)
def _plan(layout: Layout, k: int, value_bits: int) -> Plan:
    found: list[Group] = []
    start = first = 0
    for number, p in enumerate(layout.parameters):
        tail_offset = p.offset + p.chunks * CHUNK
        for offset, count, length in ((p.offset, p.chunks, CHUNK), (tail_offset, 1, p.tail)):
            if count and length:
                group = Group(number, offset, start, first, count, RecordFormat.of_chunk(length, k, value_bits))
                found.append(group)
                start, first = start + group.size_bytes, first + group.values
    return Plan(tuple(found))


@lru_cache(maxsize=64)
def _batches(plan: Plan, elements: int) -> tuple[I64, ...]:
    batches: list[list[tuple[int, ...]]] = []
    left = 0
    for group in (part for whole in plan.groups for part in whole.cut(elements)):
        if group.elements > left:
            batches.append([])
            left = elements
        left -= group.elements
        batches[-1].append(_row(group))
    return tuple(np.array(rows, np.int64) for rows in batches)


def _row(group: Group) -> tuple[int, ...]:
    fmt = group.format
    place = (group.parameter, group.offset, group.start, group.first, group.count)
    return (*place, fmt.length, fmt.k, fmt.low_width, fmt.upper_bits, fmt.value_bits, fmt.size_bytes)
