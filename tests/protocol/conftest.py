"""A run small enough to work out by hand, and builders for what travels in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bittensor_core import Keypair

from protocol.ledger.state import state_root
from protocol.run import Run, run_from_table
from protocol.sparseloco.compress import compress
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.payload import Header, sync_proof

WINDOW_HASH = bytes(range(32))

TABLE: dict[str, Any] = {
    "name": "tiny",
    "genesis_root": "00" * 32,
    "time": {"window_blocks": 10},
    "model": {"model_type": "llama", "hidden_size": 8},
    "dataset": {"index_digest": "11" * 32, "sequence_tokens": 16, "page_sequences": 2, "slots": 4},
    "inner": {"steps": 3, "pages_per_step": 2, "learning_rate": 0.003},
    "gauntlet": {"random_pages": 3, "own_pages": 2, "held_out_pages": 1},
}


@pytest.fixture(scope="session")
def table() -> Callable[..., dict[str, Any]]:
    """The smallest run table; keywords with two underscores replace values in sections: `sparseloco__k=16`."""

    def make(**changes: Any) -> dict[str, Any]:
        made = copy.deepcopy(TABLE)
        for name, value in changes.items():
            *sections, key = name.split("__")
            place = made
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = value
        return made

    return make


@pytest.fixture(scope="session")
def make_run(table: Callable[..., dict[str, Any]]) -> Callable[..., Run]:
    """A checked run; keywords as for `table`."""
    return lambda **changes: run_from_table(table(**changes))


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Run]) -> Run:
    return make_run()


@pytest.fixture(scope="session")
def layout() -> Layout:
    """A full chunk with a tail of 104, a parameter below one chunk, and one of a single element."""
    return Layout.from_shapes([("embed", (3, 1400)), ("norm", (5,)), ("scale", (1,))])


@pytest.fixture(scope="session")
def alice() -> Keypair:
    return Keypair.create_from_uri("//Alice")


@pytest.fixture(scope="session")
def bob() -> Keypair:
    return Keypair.create_from_uri("//Bob")


@pytest.fixture(scope="session")
def theta(layout: Layout) -> np.ndarray:
    values = np.random.default_rng(7).standard_normal(layout.size).astype(np.float32)
    values.setflags(write=False)
    return values


@pytest.fixture(scope="session")
def window_hash() -> bytes:
    return WINDOW_HASH


@pytest.fixture(scope="session")
def make_header(layout: Layout, run: Run, theta: np.ndarray, alice: Keypair) -> Callable[..., Header]:
    """A good header of Alice's for window 3; keywords replace its fields."""

    def make(**changes: Any) -> Header:
        fields: dict[str, Any] = {
            "run_digest": run.digest(),
            "window": 3,
            "hotkey": alice.ss58_address,
            "layout_digest": layout.digest,
            "base_root": state_root(theta),
            "sync_proof": sync_proof(theta, changes.get("hotkey", alice.ss58_address), WINDOW_HASH),
            "inner_steps": 3,
            "tokens": 192,
        }
        return Header(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def make_body(layout: Layout, run: Run) -> Callable[[int], bytes]:
    """Records of a random pseudo-gradient with this seed."""

    def make(seed: int) -> bytes:
        delta = np.random.default_rng(seed).standard_normal(layout.size).astype(np.float32) * np.float32(0.01)
        return compress(layout, run.sparseloco, np.zeros_like(delta), delta)

    return make
