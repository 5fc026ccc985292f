from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.neurons.processes import Process

TINY = """
version = 1
name = "tiny"

[time]
window_blocks = 8
seal_blocks = 1
reveal_blocks = 4
manifest_blocks = 4
failover_blocks = 2

[model]
model_type = "llama"
vocab_size = 512
hidden_size = 48
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 64
tie_word_embeddings = true

[dataset]
sequence_tokens = 64
page_sequences = 4
slots = 8

[inner]
steps = 3
pages_per_step = 1
learning_rate = 6e-3

[gauntlet]
random_pages = 4
own_pages = 2
held_out_pages = 2
unique_work_rate = 0.2

[penalties]
amnesty_rank = 2

[checkpoints]
every_windows = 2
keep = 2
"""
"""Constants of a network that is founded in a second and trains a window in a blink."""

WORDS = ("window", "peers", "lay", "their", "updates", "in", "a", "row", "and", "good", "ones", "are", "raked", "field")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset file of the smallest constants."""
    path = tmp_path_factory.mktemp("preset") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text, enough for the tiny run."""
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    for number in range(8):
        words = (draw.choice(WORDS) for _ in range(2000))
        (folder / f"{number}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module")
def no_process_survives() -> Iterator[None]:
    """Whatever the tests of a module have started is ended after them."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("these tests find the processes of a network in /proc, which only Linux has")
    yield
    while Process.started:
        Process.started.pop().destroy()
