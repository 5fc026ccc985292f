"""`windrow run`: making, showing and publishing the constants of a run."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from rich.table import Table

from neurons.doctor.words import duration, size
from neurons.draft import UNKNOWN, changed, check_draft, draft_of, read_constants, without_digests
from neurons.errors import ConfigError, FolderError
from neurons.figures import figures_of, miner_memory_bytes
from neurons.genesis import Genesis, Say
from neurons.leaderboard.words import plain
from neurons.own_bucket import endpoint_of
from neurons.publication import read_published
from neurons.publishing import Open, Order, publish
from neurons.training.model import require_positions
from protocol.run import PRESETS, Run, run_from_table
from protocol.window import deadlines
from storage.bucket import Bucket
from storage.directory import DirectoryBucket
from storage.profiles import Profile
from storage.s3 import S3Bucket
from storage.transfer import Reach, Transport

_BLOCK_SECONDS = 12
"""Of Bittensor, for lengths of time that people compare."""


def new(path: Path, name: str, preset: str, changes: Sequence[str], from_block: int | None) -> Run:
    """Write a draft to `path`: a preset with a name, changes, and the first window that begins at or after
    `from_block`. Raises `ConfigError` for what no run can be, `FolderError` when `path` is taken."""
    table = changed({**read_constants(preset)[0], "name": name}, changes)
    draft = check_draft(table)
    if from_block is not None:
        table.setdefault("time", {})["first_window"] = -(-from_block // draft.time.window_blocks)
        draft = check_draft(table)
    require_positions(draft.model, draft.dataset.sequence_tokens)  # builds the model too, so that it is known to be one
    try:
        with path.open("x") as file:
            file.write(tomli_w.dumps(without_digests(table)))
    except FileExistsError as error:
        raise FolderError(f"{path} exists already: remove it, or choose another --out") from error
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror}): choose another --out") from error
    return draft


async def find(source: str) -> Run:
    """The run at `source`: a preset, a TOML file of constants, or where a run is published. What a draft does not know
    yet is `UNKNOWN`."""
    if source in PRESETS:
        return read_constants(source)[1]
    if "://" not in source:
        table = read_table(Path(source))
        return run_from_table(table) if "genesis_root" in table else draft_of(table)
    transport = Transport(Reach.ANY)
    try:
        return (await read_published(source, transport)).run
    finally:
        await transport.close()


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file of constants, draft or run.toml; `ConfigError` when it is none."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a TOML file of constants: {error}; make one with: windrow run new") from error


def facts(run: Run) -> dict[str, Any]:
    """What a run is and asks for, for `--json`."""
    figures, start = asdict(figures_of(run)), deadlines(run.time.first_window, run.time).start_block
    known = UNKNOWN not in (run.genesis_root, run.dataset.index_digest)
    return {
        "name": run.name,
        "digest": run.digest() if known else None,
        "genesis_root": run.genesis_root if run.genesis_root != UNKNOWN else None,
        "dataset_digest": run.dataset.index_digest if run.dataset.index_digest != UNKNOWN else None,
        "first_window": run.time.first_window,
        "first_block": start,
        "window_blocks": run.time.window_blocks,
        "window_seconds": run.time.window_blocks * _BLOCK_SECONDS,
        "inner_steps": run.inner.steps,
        **figures,
        "memory_bytes": {
            name: miner_memory_bytes(run, dtype) for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
        },
    }


def facts_table(found: dict[str, Any]) -> Table:
    """The same for people."""
    unknown = "not before it is published: windrow run publish"
    window = f"{found['window_blocks']} blocks, {duration(found['window_seconds'])} on Bittensor"
    memory = ", ".join(f"{size(count)} in {name}" for name, count in found["memory_bytes"].items())
    rows = {
        "name": plain(found["name"]),
        "digest": found["digest"] or unknown,
        "genesis root": found["genesis_root"] or unknown,
        "dataset": found["dataset_digest"] or unknown,
        "begins": f"window {found['first_window']:,}, block {found['first_block']:,}",
        "window": f"{window}, {found['inner_steps']} steps",
        "model": f"{found['parameters']:,} parameters, {size(found['checkpoint_bytes'])} a checkpoint",
        "a miner reads": f"{found['tokens_per_window']:,} tokens a window, {size(found['read_bytes'])}",
        "and sends": f"{size(found['payload_bytes'])} in {found['shards']} shards, and reads up to "
        f"{size(found['gather_bytes'])} of others",
        "memory": f"{memory} (a step is one batch)",
        "disk": size(found["saved_bytes"]),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    return table


async def publish_run(say: Say, order: Order, bucket: str, public_url: str | None, aws: Profile) -> tuple[Genesis, str]:
    """Publish into `bucket`, a folder or the URL of one at a store, and read the run back in the way that others will.
    Returns what was published and what to pass to `--run`."""
    transport = Transport(Reach.ANY)
    try:
        if order.text is not None and order.dataset is not None:
            raise ConfigError("--text and --dataset both say what to train on: leave out one of them")
        genesis = await publish(say, _opening(bucket, public_url, aws, transport), order, transport)
        where = f"{(public_url or str(Path(bucket).absolute())).rstrip('/')}/{genesis.keys.run_toml()}"
        say("reading it back")
        published = await read_published(where, transport)
        # What a publisher names may be of its own network: whether others reach it is for their doctor to say.
        await published.open_dataset(None, transport, transport, Path())
        return genesis, where
    finally:
        await transport.close()


def _opening(bucket: str, public_url: str | None, aws: Profile, transport: Transport) -> Open:
    if "://" not in bucket:
        return lambda folder: DirectoryBucket(Path(bucket).absolute() / folder)
    if public_url is None:
        raise ConfigError(
            "a run is published for everybody: make the bucket readable without a key and give --public-url, the https "
            "URL under which it is"
        )
    endpoint, credentials = endpoint_of(bucket, aws), aws.credentials
    if credentials is None:
        raise ConfigError(
            "the key that may write the bucket is not given: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name "
            "a profile with --aws-profile"
        )

    def opened(folder: str) -> Bucket:
        prefix = "/".join(part for part in (endpoint.prefix, folder) if part)
        return S3Bucket(replace(endpoint, prefix=prefix), credentials, transport)

    return opened
