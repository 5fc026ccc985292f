"""The S3 server of a network on this machine: a bucket for each member, with a key to write it and one to read it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import tomli_w

from neurons import radosgw
from neurons.folder import Charter, Places, held, is_held
from neurons.radosgw import Radosgw
from neurons.settings import load_settings
from storage.s3 import S3Bucket
from storage.transfer import Transport


def make_buckets(server: Radosgw, folder: Path, names: list[str]) -> None:
    """A bucket in `server` for each name, and the settings that say where it is and hold its keys, for its owner's
    eyes only. Raises `RadosgwError`."""
    for name in names:
        keys = server.create_bucket(name)
        settings = {
            "bucket": f"{server.url}/{name}?region={radosgw.REGION}",
            "write_key_id": keys.write.key_id,
            "write_secret": keys.write.secret.reveal(),
            "read_key_id": keys.read.key_id,
            "read_secret": keys.read.secret.reveal(),
        }
        path = Places(folder).keys(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(tomli_w.dumps(settings))


def member_bucket(folder: Path, name: str, transport: Transport) -> S3Bucket:
    """The bucket of a member, as it writes it itself."""
    own = load_settings({"dir": folder, "wallet_name": name}, {}, Places(folder).keys(name)).own
    assert own is not None
    return S3Bucket(own.endpoint, own.write, transport)


@contextlib.contextmanager
def serving(folder: Path, charter: Charter) -> Iterator[None]:
    """The buckets of the network can be reached during the block, whether it runs or not. Raises `FolderError` and
    `RadosgwError`."""
    if charter.storage == "directory" or is_held(folder):  # whoever runs it has the server as well
        yield
        return
    store = Places(folder).store
    with held(store, f"another command is reading {store}; try again when it has ended"), start(folder):
        yield


def start(folder: Path) -> Radosgw:
    """Start the server of the network in `folder`: a new one, or the one of the last time with all that it stores.
    Raises `RadosgwError`."""
    return radosgw.start(Places(folder).store, durable=True)
