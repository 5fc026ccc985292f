"""Fixtures for whole networks in virtual time (`neurons.lab.virtual`)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neurons.lab.virtual import Corpus, Simulation, run_virtually, small_corpus, tiny_table


def quick_table() -> dict[str, Any]:
    """As `tiny_table`, with as little training and judging as there can be: for scenarios of many windows."""
    table = tiny_table()
    table["inner"] |= {"steps": 2, "warmup_steps": 0}
    table["gauntlet"] |= {"own_pages": 2, "random_pages": 2, "random_pages_most": 2, "held_out_pages": 1}
    return table


@functools.cache
def corpus() -> Corpus:
    """What all networks of a session train on."""
    return small_corpus()


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Coroutine[Any, Any, Simulation]]:
    """Make a network: `async with await network(["v", "a", "b"]) as net`."""

    folders = itertools.count()

    async def make(names: list[str], **options: Any) -> Simulation:
        folder = tmp_path / f"network-{next(folders)}"
        folder.mkdir()
        simulation = Simulation(folder, corpus(), **options)
        await simulation.create(names)
        return simulation

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick() -> dict[str, Any]:
    """Constants of a network whose windows cost next to nothing."""
    return quick_table()


@pytest.fixture
def virtual() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end in virtual time."""

    return run_virtually
