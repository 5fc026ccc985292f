"""Publishing a run: dataset, first state, run.toml and publication into the publisher's bucket, each of them once.

Everything lies under a name that its content decides, so whoever publishes again, after an interruption say, finds what
is there already and adds the rest. run.toml comes last: whoever can read it finds all that it names.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurons.draft import check_draft, without_digests
from neurons.errors import ConfigError
from neurons.genesis import Genesis, Say, cut_text, make_genesis, write_genesis
from neurons.publication import Publication, dataset_folder, publication_key, source_bucket
from neurons.training.model import imagined, vocabulary_size
from protocol.run import Run
from storage.bucket import Bucket
from storage.checkpoint import latest_window
from storage.dataset import INDEX_KEY, INDEX_LIMIT_BYTES, TOKENIZER_KEY, Dataset, open_dataset
from storage.documents import digest_of
from storage.errors import NotFound
from storage.large import upload
from storage.s3 import S3Bucket
from storage.transfer import Transport

Open = Callable[[str], Bucket]
"""Opens what lies below a folder of the publisher's bucket, the bucket itself for the empty one."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be published. `table` is a draft or a whole run.toml; the text of its dataset lies in the folder
    `text` (the standard library's is taken when None), unless `dataset` names one that exists, by path or https URL."""

    table: dict[str, Any]
    text: Path | None
    dataset: str | None
    network: str | None
    netuid: int | None


async def publish(say: Say, open_folder: Open, order: Order, transport: Transport) -> Genesis:
    """Publish, or add what an earlier attempt left out. Raises `ConfigError`, `TextError` and what storage raises."""
    draft = check_draft(without_digests(order.table))
    digest, elsewhere = await _publish_dataset(say, open_folder, order, draft, transport)
    say("initialising the model")
    genesis = await asyncio.to_thread(make_genesis, without_digests(order.table), digest)
    _require_same(order.table, genesis.run)
    bucket = open_folder("")
    if await latest_window(bucket, genesis.keys) is None:
        say("uploading the first state")
        await write_genesis(bucket, genesis)
    publication = Publication(network=order.network, netuid=order.netuid, dataset=elsewhere)
    await bucket.put(publication_key(genesis.keys), publication.to_bytes())
    await bucket.put(genesis.keys.run_toml(), genesis.text.encode())
    return genesis


async def _publish_dataset(
    say: Say, open_folder: Open, order: Order, draft: Run, transport: Transport
) -> tuple[str, str | None]:
    """Digest of the dataset, and where it lies if that is not in the publisher's bucket."""
    if order.dataset is None:
        with tempfile.TemporaryDirectory(prefix="windrow-dataset-") as folder:
            digest = await cut_text(say, source_bucket(folder, transport), draft, order.text)
            await _copy(say, Path(folder), open_folder, digest, transport)
        return digest, None
    try:
        index = await source_bucket(order.dataset, transport).get(INDEX_KEY, limit_bytes=INDEX_LIMIT_BYTES)
    except NotFound as error:
        raise ConfigError(f"{order.dataset} holds no dataset: it has no {INDEX_KEY}; correct --dataset") from error
    dataset = await open_dataset(source_bucket(order.dataset, transport), digest_of(index))
    _require_fitting(dataset, draft)
    if "://" in order.dataset:
        return dataset.digest, order.dataset
    say("checking the dataset")
    await dataset.verify()
    await _copy(say, Path(order.dataset), open_folder, dataset.digest, transport)
    return dataset.digest, None


async def _copy(say: Say, folder: Path, open_folder: Open, digest: str, transport: Transport) -> None:
    """Upload what is not there yet; the index last, so that a dataset that can be opened is complete."""
    target = open_folder(dataset_folder(digest))
    dataset = await open_dataset(source_bucket(str(folder), transport), digest)
    names = [*(shard.name for shard in dataset.index.shards), TOKENIZER_KEY, INDEX_KEY]
    for number, name in enumerate(names):
        if await _has(target, name, (folder / name).stat().st_size):
            continue
        say(f"uploading the dataset: object {number + 1} of {len(names)}")
        if isinstance(target, S3Bucket):
            await upload(target, name, folder / name)
        else:
            await target.put(name, await asyncio.to_thread((folder / name).read_bytes))


async def _has(bucket: Bucket, key: str, size_bytes: int) -> bool:
    try:
        return (await bucket.head(key)).size_bytes == size_bytes
    except NotFound:
        return False


def _require_fitting(dataset: Dataset, draft: Run) -> None:
    index, vocabulary = dataset.index, vocabulary_size(imagined(draft.model))
    wrong = []
    for name in ("sequence_tokens", "page_sequences"):
        if getattr(index, name) != getattr(draft.dataset, name):
            wrong.append(f"dataset.{name} is {getattr(draft.dataset, name)}, the dataset has {getattr(index, name)}")
    if index.pages < draft.pages_needed:
        wrong.append(f"the run deals out {draft.pages_needed} pages, the dataset has {index.pages}")
    if index.held_out_pages < draft.gauntlet.held_out_pages:
        held_out = draft.gauntlet.held_out_pages
        wrong.append(f"gauntlet.held_out_pages is {held_out}, the dataset has {index.held_out_pages}")
    if index.vocab_size > vocabulary:
        wrong.append(f"the model takes {vocabulary} tokens, the dataset has {index.vocab_size}")
    if wrong:
        raise ConfigError(f"the dataset does not fit the run: {'; '.join(wrong)}")


def _require_same(table: dict[str, Any], run: Run) -> None:
    """A whole run.toml is published as it is or not at all."""
    for name, given, made in (
        ("dataset.index_digest", table.get("dataset", {}).get("index_digest"), run.dataset.index_digest),
        ("genesis_root", table.get("genesis_root"), run.genesis_root),
    ):
        if given not in (None, made):
            raise ConfigError(
                f"{name} is {str(given)[:16]}… and comes out as {made[:16]}… here: publish from the machine, text and "
                "versions that it was made with, or leave it out to make another run"
            )
