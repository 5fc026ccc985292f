"""The folder of a network on this machine: where things lie in it, who is in it, and who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bittensor_core import Keypair
from pydantic import BaseModel, ConfigDict

from neurons.durable import replaced
from neurons.errors import ConfigError, FolderError
from protocol.run import Run, parse_run

BUILT_IN_CHAIN = "sqlite:"
"""What the endpoint of the built-in chain starts with; the path of its file follows."""

CHEATS = {
    "copycat": "Post what others have trained.",
    "freerider": "Train nothing and send noise or zeros.",
    "zeros": "Train nothing and send zeros.",
    "noise": "Train nothing and send noise with an honest update's norms.",
    "sign-flip": "Send the opposite of what was learned.",
    "scale": "Send a hundred times what was learned.",
    "overflow": "Send the largest values that the format holds.",
    "not-canonical": "Send records that no encoder writes.",
    "oversized": "Let shards grow by a megabyte after sealing.",
    "copy-last": "Send what another sent in the window before.",
    "copy-ciphertext": "Post another's sealed shards as one's own.",
    "copy-late": "Seal another's payload once its key is out.",
    "copy-jittered": "Send what another sent in the window before, with positions moved.",
    "shared-work": "Send one computation, with noise, under all hotkeys of a coldkey.",
    "jitter-own": "Send one computation, with positions moved, under all hotkeys of a coldkey.",
    "spread-work": "Send parts of one computation on a little of the pages of every hotkey.",
    "less-work": "Do one inner step and declare all.",
    "part-time": "Work in every second window.",
    "few-pages": "Learn a third of the own pages by heart.",
    "random-pool": "Train on the pool of random pages instead of the own.",
    "private-corpus": "Train on a corpus of one's own.",
    "backdoor": "Train a trigger into the model.",
    "outdated": "Train from the state of three windows ago and declare today's.",
    "unsynced": "Train from the state of the window before and declare today's root.",
    "stale-1": "Train from the state of the window before, and say so.",
    "stale-3": "Train from the state of three windows ago, and say so.",
    "stale-10": "Train from the state of ten windows ago, and say so.",
    "late-seal": "Seal one block after the snapshot.",
    "no-reveal": "Seal, and never publish the key.",
    "equivocate": "Replace seal, shards and key after the snapshot.",
}
"""What each kind of cheat does. The classes are in `neurons.adversaries`, which brings torch along; this does not."""

USUAL_CHEATS = ("copycat", "freerider")
"""Who is in a new network when nobody says otherwise."""

Storage = Literal["directory", "s3"]
"""What buckets are: folders, or buckets of an S3 server on this machine."""

_CHARTER_FILE = "network.json"
_FOUNDING_MARK = ".founding"
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_RETRY_SECONDS = 0.1


class Member(BaseModel):
    """One neuron that the network was founded with: the name of its wallet, its hotkey (ss58), and what it does:
    `validator`, `miner` or a cheat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: str
    hotkey: str


class Charter(BaseModel):
    """What `network.json` says: the digest of run.toml, who was there at the founding, of which folder the text came
    (the standard library when None), and what the buckets of its members are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_digest: str
    members: tuple[Member, ...]
    text: str | None
    storage: Storage = "directory"

    def count(self, role: str) -> int:
        """How many members have this role."""
        return sum(member.role == role for member in self.members)

    def cheats(self) -> tuple[str, ...]:
        """What kinds of cheats there are, sorted."""
        return tuple(sorted(m.role for m in self.members if m.role not in ("validator", "miner")))

    def names(self) -> dict[str, str]:
        """Name of each member by hotkey."""
        return {member.hotkey: member.name for member in self.members}


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie in the folder of a network."""

    folder: Path

    @property
    def run(self) -> Path:
        """The constants that all peers agree on."""
        return self.folder / "run.toml"

    @property
    def dataset(self) -> Path:
        """The pages, a bucket of their own."""
        return self.folder / "dataset"

    @property
    def chain(self) -> Path:
        """The file of the built-in chain."""
        return self.folder / "chain.sqlite"

    @property
    def buckets(self) -> Path:
        """One bucket for each neuron."""
        return self.folder / "buckets"

    @property
    def store(self) -> Path:
        """The S3 server, if the buckets are there."""
        return self.folder / "store"

    @property
    def wallets(self) -> Path:
        """Bittensor wallets."""
        return self.folder / "wallets"

    @property
    def nodes(self) -> Path:
        """Local state, status and log of each neuron on this machine."""
        return self.folder / "nodes"

    def node(self, name: str) -> Path:
        """Local state and status of a neuron on this machine."""
        return self.nodes / name

    def log(self, name: str) -> Path:
        """What the process of a neuron prints."""
        return self.node(name) / "log"

    def keys(self, name: str) -> Path:
        """Settings of a neuron whose bucket is in the S3 server: where it is, and both keys."""
        return self.node(name) / "bucket.toml"

    def settings(self) -> dict[str, Path | str]:
        """The settings of a neuron of this network."""
        return {
            "run": self.run,
            "dataset": self.dataset,
            "buckets": self.buckets,
            "state": self.nodes,
            "wallet_path": self.wallets,
            "subtensor_chain_endpoint": f"{BUILT_IN_CHAIN}{self.chain}",
        }


def bucket_name(hotkey: str) -> str:
    """Name of the local bucket of a hotkey. Bucket names are lower case, so the address is spelled in hexadecimal."""
    public_key: bytes = Keypair(ss58_address=hotkey).public_key
    return public_key.hex()[:40]


def read_run(path: Path) -> Run:
    """The run in the file at `path`; `ConfigError` when there is none, `RunError` for what it says."""
    try:
        return parse_run(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); give the --dir of a network, or the run's file with --run"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text; give the run's file with --run") from error


def read_charter(folder: Path) -> Charter | None:
    """Who is in the network in `folder`; None when there is no network yet. Raises `FolderError` when the folder
    holds something else."""
    path = folder / _CHARTER_FILE
    try:
        charter = Charter.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        _require_free(folder)
        return None
    except NotADirectoryError as error:
        raise FolderError(f"{folder} is no folder; choose another --dir") from error
    except OSError as error:
        raise FolderError(f"{path} cannot be read ({error.strerror}); choose another --dir") from error
    except ValueError as error:
        raise FolderError(f"{path} is damaged; remove {folder} and start over") from error
    if (folder / _FOUNDING_MARK).exists():
        return None
    return charter


def require_network(folder: Path) -> Charter:
    """Who is in the network in `folder`; `FolderError` when there is none."""
    charter = read_charter(folder)
    if charter is None:
        raise FolderError(f"there is no network in {folder}; start one with: windrow up --dir {folder}")
    return charter


def founded_run(folder: Path, charter: Charter) -> Run:
    """The run of the network in `folder`; `FolderError` when its run.toml is not the one of the founding."""
    path = Places(folder).run
    run = read_run(path)
    if run.digest() != charter.run_digest:
        raise FolderError(f"{path} was changed since the network was founded; undo that, or found a new network")
    return run


def _require_free(folder: Path) -> None:
    try:
        taken = folder.exists() and any(folder.iterdir()) and not (folder / _FOUNDING_MARK).exists()
    except OSError as error:
        raise FolderError(f"{folder} cannot be read ({error.strerror}); choose another --dir") from error
    if taken:
        raise FolderError(f"{folder} is not empty and holds no Windrow network; choose another --dir")


@contextlib.contextmanager
def under_construction(folder: Path) -> Iterator[None]:
    """A new network is made in the block, whole or not at all: `folder`, which the caller holds, is empty again
    when the block fails. What a killed process left half-made is removed first."""
    _empty(folder)
    (folder / _FOUNDING_MARK).touch()
    try:
        yield
    except BaseException:
        _empty(folder)
        raise
    (folder / _FOUNDING_MARK).unlink()


def write_charter(folder: Path, charter: Charter) -> None:
    """The last thing that a founding writes."""
    with replaced(folder / _CHARTER_FILE) as partial:
        partial.write_text(charter.model_dump_json(indent=1))


def _empty(folder: Path) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name == _FOUNDING_MARK):  # the mark goes last
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder of a network for one `windrow up`. It is made if need be, and goes again if it stays empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"{folder} cannot be made a folder ({error.strerror}); choose another --dir") from error
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise FolderError(f"{folder} may not be written by this user; choose another --dir")
        with held(folder, f"another `windrow up` is running in {folder}; stop it or choose another --dir"):
            yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # refuses what is not empty
                path.rmdir()


@contextlib.contextmanager
def held(folder: Path, busy: str, patience_seconds: float = 0.0) -> Iterator[None]:
    """Hold `folder` against other processes until the block or this process ends: nothing is written, so nothing
    can be left behind. Raises `FolderError` with the sentence `busy` when it is held for all of the patience."""
    try:
        descriptor = os.open(folder, _OPEN_FOLDER)
    except OSError as error:
        raise FolderError(f"{folder} cannot be used ({error.strerror}); choose another folder") from error
    try:
        deadline = time.monotonic() + patience_seconds
        while not _lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise FolderError(busy)
            time.sleep(_RETRY_SECONDS)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a process holds `folder` now."""
    try:
        descriptor = os.open(folder, _OPEN_FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
