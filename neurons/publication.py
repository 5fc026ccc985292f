"""A published run, as a node finds it: run.toml, what its publisher says beside it, and where its first state lies.

`RUN/run.toml` and `RUN/publication.json` lie side by side in the publisher's bucket, RUN being the first 16 digits of
the run's digest: whoever has the right URL gets the right constants. The publication says what is no constant of the
run and so in no digest: on which subnet it goes on, and where its dataset is read. It may change, with the run going
on; a node's own settings win over it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from neurons.errors import ConfigError
from neurons.folder import read_run
from protocol.run import Run, parse_run
from storage.bucket import Bucket
from storage.dataset import Dataset, open_dataset
from storage.directory import DirectoryBucket
from storage.documents import StoredDocument
from storage.errors import BadLocation, DatasetError, NotFound, StorageError
from storage.https import HttpsBucket
from storage.keys import Keys
from storage.location import HttpsLocation, open_bucket
from storage.transfer import Transport

RUN_LIMIT_BYTES = 1 << 20
PUBLICATION_LIMIT_BYTES = 64 << 10

RUN_FILE, PUBLICATION_FILE = "run.toml", "publication.json"

_URL = re.compile(rf"(https?://[^?#]+)/([0-9a-f]{{16}})/{re.escape(RUN_FILE)}")
_REMOTE = re.compile(r"https?://")
_PLAIN = re.compile(r"http://(?!(127\.0\.0\.1|localhost)[:/])")


class Publication(StoredDocument):
    """All of `publication.json`. `network` and `netuid` name the subnet, `dataset` the https URL of the dataset; what
    is None must be in a node's own settings, but for a dataset that lies in the publisher's bucket."""

    version: Literal[1] = 1
    network: str | None = None
    netuid: Annotated[int, Field(ge=1, le=65535)] | None = None
    dataset: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """A run and where it comes from. `base` is the folder or the URL of its publisher's bucket, None for a run.toml
    that lies by itself."""

    run: Run
    publication: Publication
    base: str | None

    @property
    def keys(self) -> Keys:
        """Names of the run's objects."""
        return Keys(self.run.digest()[:16])

    def bucket(self, transport: Transport) -> Bucket | None:
        """The publisher's bucket, in which the first checkpoint lies."""
        return None if self.base is None else source_bucket(self.base, transport)

    async def open_dataset(
        self, source: str | None, own: Transport, others: Transport, local_root: Path | None
    ) -> Dataset:
        """The run's dataset: at `source`, a path or an https URL, if it is given; else where the publication says;
        else in the publisher's bucket. Raises `ConfigError` when it is not there.

        `own` reaches what this node's owner names; `others` and `local_root` are as for what peers name
        (`storage.location.open_bucket`): the publication is in no digest, and may say anything."""
        digest = self.run.dataset.index_digest
        told = None if source else self.publication.dataset
        where = source or told or (self.base and f"{self.base}/{dataset_folder(digest)}")
        if not where:
            raise ConfigError("dataset not given: give --dataset, the folder or the https URL of the run's dataset")
        try:
            bucket = open_bucket(HttpsLocation(where), others, local_root) if told else source_bucket(where, own)
            return await open_dataset(bucket, digest)
        except BadLocation as error:
            raise ConfigError(
                f"the publication names no dataset that could be read: {error}; give --dataset"
            ) from error
        except DatasetError as error:
            raise ConfigError(f"{where} is not the run's dataset: {error}; correct --dataset") from error


def publication_key(keys: Keys) -> str:
    """Where the publication lies, beside run.toml."""
    return f"{keys.run}/{PUBLICATION_FILE}"


def dataset_folder(digest: str) -> str:
    """Where in a publisher's bucket the dataset with this digest lies. Runs on the same text share it."""
    return f"datasets/{digest[:16]}"


def source_bucket(source: str, transport: Transport) -> Bucket:
    """What lies at a path or an https URL; raises `ConfigError` for a URL that cannot be one of a bucket."""
    if not _REMOTE.match(source):
        return DirectoryBucket(Path(source).expanduser())
    _require_bare(source)
    if _PLAIN.match(source):
        raise ConfigError(f"{source} is read by plain http, and who carries it could change it: give an https URL")
    try:
        return HttpsBucket(source, transport)
    except BadLocation as error:
        raise ConfigError(f"{source}: {error}") from error


async def read_published(source: str, transport: Transport) -> Published:
    """The run at `source`, the path or the https URL of a run.toml. Raises `ConfigError` when there is none, `RunError`
    for what it says, and `Unavailable` when its store does not answer."""
    if not _REMOTE.match(source):
        return await _from_file(Path(source).expanduser(), transport)
    _require_bare(source)
    found = _URL.fullmatch(source)
    if found is None:
        raise ConfigError(
            f"{source} is not where a run lies: give the URL as `windrow run publish` prints it, which ends in "
            f"/RUN/{RUN_FILE}, RUN being the first 16 digits of the run's digest"
        )
    return await _from_bucket(source, found[1], Keys(found[2]), transport)


def _require_bare(url: str) -> None:
    if set("@?#") & set(url):  # not shown: it may hold a password, or be a URL that somebody signed
        raise ConfigError("a run and a dataset are read at a plain https URL, without user, ? and #: correct it")


async def _from_file(path: Path, transport: Transport) -> Published:
    run = read_run(path)
    if path.absolute().parts[-2:] != (run.digest()[:16], RUN_FILE):
        return Published(run, Publication(), None)
    return await _from_bucket(str(path), str(path.absolute().parents[1]), Keys(run.digest()[:16]), transport)


async def _from_bucket(source: str, base: str, keys: Keys, transport: Transport) -> Published:
    bucket = source_bucket(base, transport)
    try:
        text = await bucket.get(keys.run_toml(), limit_bytes=RUN_LIMIT_BYTES)
        said = await bucket.get(publication_key(keys), limit_bytes=PUBLICATION_LIMIT_BYTES)
        publication = Publication.from_bytes(said, publication_key(keys), StorageError)
        run = parse_run(text.decode())
    except NotFound as error:
        raise ConfigError(f"there is no published run at {source} ({error}): correct --run") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not text: correct --run") from error
    if run.digest()[:16] != keys.run:
        raise ConfigError(f"{source} holds run {run.digest()[:16]}, another one than it is named after: correct --run")
    return Published(run, publication, base)
