"""What a new run begins with: a dataset cut from text, the model's first state, and the run.toml that names both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from neurons.corpus import (
    SMALLEST_VOCABULARY,
    folder_texts,
    require_bytes,
    standard_library_texts,
    tokenize,
    train_tokenizer,
)
from neurons.draft import with_dataset
from neurons.errors import ConfigError
from protocol.ledger.state import state_root
from protocol.run import Run, run_from_table
from protocol.sparseloco.layout import F32
from storage.bucket import Bucket
from storage.checkpoint import write_checkpoint
from storage.dataset import write_dataset
from storage.keys import Keys

_PAGES_PER_SHARD = 1024
_MOST_BYTES_PER_TOKEN = 4
"""A byte-level BPE of a few thousand tokens reaches 3 to 3.5 bytes a token on text and code; asking for 4 is safe."""

_SEED = 0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Genesis:
    """A run that can begin: `text` is its run.toml, `tensors` (fp32, by name) its first state."""

    run: Run
    text: str
    tensors: dict[str, F32]

    @property
    def keys(self) -> Keys:
        """Names of the run's objects."""
        return Keys(self.run.digest()[:16])


def vocabulary_of(draft: Run) -> int:
    """The tokens that the tokenizer of `draft` may have; `ConfigError` when its model names no possible number."""
    vocabulary = draft.model.get("vocab_size")
    if type(vocabulary) is not int or vocabulary < SMALLEST_VOCABULARY:
        raise ConfigError(f"[model]: vocab_size must be a number of tokens, {SMALLEST_VOCABULARY} or more")
    return vocabulary


async def cut_text(say: Say, bucket: Bucket, draft: Run, text: Path | None) -> str:
    """Train a tokenizer on the files of `text` (the standard library when None), make of them the dataset of `draft`
    in `bucket`, and return its digest. The same text gives the same digest. Raises `TextError` and `ConfigError`."""
    vocabulary = vocabulary_of(draft)
    page_tokens = draft.dataset.page_sequences * draft.dataset.sequence_tokens
    say("reading text")
    files = standard_library_texts() if text is None else folder_texts(text)
    pages = draft.pages_needed + draft.gauntlet.held_out_pages
    require_bytes(files, pages * page_tokens * _MOST_BYTES_PER_TOKEN)
    say(f"training a tokenizer of {vocabulary} tokens on {len(files)} files")
    tokenizer = train_tokenizer(files, vocabulary)
    say("cutting the text into pages")
    return await write_dataset(
        bucket,
        tokenize(files, tokenizer),
        vocab_size=vocabulary,
        sequence_tokens=draft.dataset.sequence_tokens,
        page_sequences=draft.dataset.page_sequences,
        held_out_pages=draft.gauntlet.held_out_pages,
        tokenizer=tokenizer,
        shard_pages=_PAGES_PER_SHARD,
    )


def make_genesis(table: dict[str, Any], dataset_digest: str) -> Genesis:
    """Initialise the model of the draft `table` and fill in both digests. Needs 8 bytes a parameter. On another
    machine or version of torch it may come out as another genesis, hence another run."""
    # Imported only here, because they bring torch along.
    from neurons.training.model import initial_parameters, model_layout, require_positions

    require_positions(table["model"], table["dataset"]["sequence_tokens"])
    theta = initial_parameters(table["model"], _SEED)
    table = {**with_dataset(table, dataset_digest), "genesis_root": state_root(theta)}
    return Genesis(run_from_table(table), tomli_w.dumps(table), model_layout(table["model"]).tensors(theta))


async def write_genesis(bucket: Bucket, genesis: Genesis) -> None:
    """Store the first state as the checkpoint of the first window."""
    run = genesis.run
    window, root = run.time.first_window, run.genesis_root
    await write_checkpoint(bucket, genesis.keys, window=window, root=root, tensors=genesis.tensors)
