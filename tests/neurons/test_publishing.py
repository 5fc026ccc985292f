"""A run from its draft to a node that finds it: in a folder, and in a bucket that anybody may read."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from neurons import cli
from neurons.draft import without_digests
from neurons.errors import ConfigError, TextError
from neurons.publication import Publication, Published, read_published, source_bucket
from neurons.publishing import Order, publish
from neurons.radosgw import Keys, Radosgw
from neurons.run_commands import read_table
from neurons.training.model import model_layout
from storage.bucket import Bucket
from storage.checkpoint import open_checkpoint
from storage.directory import DirectoryBucket
from storage.errors import StorageError, Unavailable
from storage.transfer import Reach, Transport


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """What `windrow run new` makes of the tiny preset."""
    path = tmp_path_factory.mktemp("draft") / "tiny.toml"
    assert cli.main(["run", "new", "mine", "--preset", str(tiny), "--set", "inner.steps=2", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, draft: Path, text: Path) -> Path:
    """A folder into which the draft was published. Not to be changed."""
    place = tmp_path_factory.mktemp("place")
    publish_to(place, draft, text=text, network="test", netuid=7)
    return place


def order(draft: Path, **fields: Any) -> Order:
    values: dict[str, Any] = {"text": None, "dataset": None, "network": None, "netuid": None, **fields}
    return Order(read_table(draft), **values)


def publish_to(place: Path, draft: Path, **fields: Any) -> list[str]:
    """Publish into a folder; returns what was said."""
    said: list[str] = []
    transport = Transport(Reach.ANY)
    asyncio.run(publish(said.append, lambda name: DirectoryBucket(place / name), order(draft, **fields), transport))
    return said


def found_in(place: Path) -> Published:
    (path,) = place.glob("*/run.toml")
    return asyncio.run(read_published(str(path), Transport(Reach.ANY)))


# --- new and show -------------------------------------------------------------------------------------------


def test_a_draft_is_checked_and_named(tmp_path: Path, draft: Path) -> None:
    table = read_table(draft)
    assert (table["name"], table["inner"]["steps"]) == ("mine", 2)
    assert table == without_digests(table)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["Name!"], 2, "name: "),
        (["x", "--set", "inner.stepps=3"], 2, "did you mean inner.steps"),
        (["x", "--preset", "huge"], 2, "neither a preset"),
        (["x", "--set", "model.hiden_size=3"], 2, "did you mean hidden_size"),
        (["x", "--set", "dataset.sequence_tokens=65"], 2, "64 positions"),
    ],
)
def test_what_is_no_run_is_told_and_nothing_is_written(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    out = tmp_path / "new.toml"
    assert cli.main(["run", "new", "--preset", str(tiny), "--out", str(out), *arguments]) == code
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_file_that_is_there_is_not_overwritten(draft: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = draft.read_bytes()
    assert cli.main(["run", "new", "x", "--preset", str(tiny), "--out", str(draft)]) == 4
    assert "exists already" in capsys.readouterr().err
    assert draft.read_bytes() == before


def test_a_run_begins_with_the_first_window_after_a_block(tmp_path: Path, tiny: Path) -> None:
    for block, window in ((0, 0), (1, 1), (8, 1), (9, 2)):
        out = tmp_path / f"{block}.toml"
        assert cli.main(["run", "new", "x", "--preset", str(tiny), "--from-block", str(block), "--out", str(out)]) == 0
        assert read_table(out)["time"]["first_window"] == window


def shown(capsys: pytest.CaptureFixture[str], source: object) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["run", "show", str(source), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_draft_preset_and_published_run_are_shown(capsys: pytest.CaptureFixture[str], draft: Path, place: Path) -> None:
    assert shown(capsys, "demo")["parameters"] == 754_304
    assert shown(capsys, draft)["digest"] is None
    (path,) = place.glob("*/run.toml")
    told = shown(capsys, path)
    assert told["digest"][:16] == path.parent.name
    assert (told["window_blocks"], told["window_seconds"], told["inner_steps"]) == (8, 96, 2)
    assert cli.main(["run", "show", str(draft)]) == 0
    assert "not before it is published" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"[time", b"\xff"])
def test_what_cannot_be_shown_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["run", "show", str(path)]) == 2
    assert "windrow run new" in capsys.readouterr().err


# --- publish ------------------------------------------------------------------------------------------------


def test_a_published_run_has_all_that_a_node_needs(place: Path) -> None:
    published = found_in(place)
    assert published.publication == Publication(network="test", netuid=7)
    transport = Transport(Reach.ANY)

    async def look() -> None:
        dataset = await published.open_dataset(None, transport, transport, None)
        await dataset.verify()
        assert dataset.index.pages >= published.run.pages_needed
        bucket = published.bucket(transport)
        assert bucket is not None
        layout = model_layout(published.run.model)
        shapes = {parameter.name: parameter.shape for parameter in layout.parameters}
        index = (await open_checkpoint(bucket, published.keys, window=None, shapes=shapes)).index
        assert (index.window, index.root) == (0, published.run.genesis_root)

    asyncio.run(look())


def test_to_publish_again_changes_nothing(tmp_path: Path, place: Path, draft: Path, text: Path) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    said = publish_to(copy, draft, text=text, network="test", netuid=7)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert not any("uploading" in line for line in said)


@dataclass
class Breaking:
    """A bucket that is away after so many puts."""

    inner: Bucket
    left: list[int]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def put(self, key: str, data: bytes) -> None:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise Unavailable("the store is away")
        await self.inner.put(key, data)


def test_an_interrupted_publication_is_finished_by_the_next(
    tmp_path: Path, place: Path, draft: Path, text: Path
) -> None:
    objects = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    transport, wish = Transport(Reach.ANY), order(draft, text=text, network="test", netuid=7)
    for puts in range(len(objects)):
        half = tmp_path / str(puts)
        left = [puts]

        def broken(name: str, half: Path = half, left: list[int] = left) -> Any:
            return Breaking(DirectoryBucket(half / name), left)

        with pytest.raises(Unavailable):
            asyncio.run(publish(lambda _: None, broken, wish, transport))
        assert not list(half.glob("*/run.toml"))  # nobody finds what is not whole
    publish_to(half, draft, text=text, network="test", netuid=7)
    assert {str(path.relative_to(half)): path.read_bytes() for path in half.rglob("*") if path.is_file()} == objects


def test_a_dataset_that_exists_is_taken(tmp_path: Path, place: Path, draft: Path) -> None:
    (dataset,) = (place / "datasets").iterdir()
    publish_to(tmp_path, draft, dataset=str(dataset))
    assert found_in(tmp_path).run == found_in(place).run
    assert (tmp_path / "datasets" / dataset.name / "tokens-00000").is_file()


def test_a_dataset_that_does_not_fit_is_refused_with_every_reason(tmp_path: Path, place: Path, draft: Path) -> None:
    (dataset,) = (place / "datasets").iterdir()
    other = tmp_path / "other.toml"
    other.write_text(
        draft.read_text().replace("slots = 8", "slots = 4000").replace("page_sequences = 4", "page_sequences = 2")
    )
    with pytest.raises(ConfigError, match=r"page_sequences is 2, the dataset has 4; the run deals out 8004 pages"):
        publish_to(tmp_path / "place", other, dataset=str(dataset))
    with pytest.raises(ConfigError, match="holds no dataset"):
        publish_to(tmp_path / "place", draft, dataset=str(tmp_path))
    assert not (tmp_path / "place").exists()


def test_a_damaged_dataset_is_not_published(tmp_path: Path, place: Path, draft: Path) -> None:
    (dataset,) = (place / "datasets").iterdir()
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    shard = damaged / "tokens-00000"
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(StorageError, match="digest"):
        publish_to(tmp_path / "place", draft, dataset=str(damaged))


def test_a_whole_run_is_published_as_it_is_or_not_at_all(tmp_path: Path, place: Path, text: Path) -> None:
    (path,) = place.glob("*/run.toml")
    publish_to(tmp_path / "same", path, text=text)
    assert found_in(tmp_path / "same").run == found_in(place).run
    changed = tmp_path / "changed.toml"
    root = found_in(place).run.genesis_root
    changed.write_text(path.read_text().replace(root, "ab" * 32))
    with pytest.raises(ConfigError, match="genesis_root is abab"):
        publish_to(tmp_path / "other", changed, text=text)
    assert not list((tmp_path / "other").glob("*/run.toml"))


def test_too_little_text_is_told(tmp_path: Path, draft: Path) -> None:
    (tmp_path / "text").mkdir()
    with pytest.raises(TextError, match="add text"):
        publish_to(tmp_path / "place", draft, text=tmp_path / "text")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bucket", "https://s3.example.org/runs"], "give --public-url"),
        (["--bucket", "https://s3.example.org/runs", "--public-url", "https://cdn.org"], "set AWS_ACCESS_KEY_ID"),
        (["--bucket", "nothing://x", "--public-url", "https://cdn.org"], "names no bucket"),
        (["--bucket", "folder", "--text", ".", "--dataset", "."], "leave out one of them"),
    ],
)
def test_flags_that_publish_nowhere_are_refused(
    draft: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["run", "publish", str(draft), *flags]) == 2
    assert words in capsys.readouterr().err


# --- over http, and at a store --------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    """A web server on a folder, as far as objects are read whole."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(place: Path) -> Iterator[str]:
    """URL of a web server on the published folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(place)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def find(source: str) -> Published:
    async def look() -> Published:
        transport = Transport(Reach.ANY)
        try:
            return await read_published(source, transport)
        finally:
            await transport.close()

    return asyncio.run(look())


def test_a_run_is_found_by_its_url(place: Path, served: str) -> None:
    (path,) = place.glob("*/run.toml")
    published = find(f"{served}/{path.parent.name}/run.toml")
    assert published.run == found_in(place).run
    assert (published.base, published.publication.netuid) == (served, 7)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{served}/run.toml", "ends in /RUN/run.toml"),
        ("{served}/0123456789abcdef/run.toml?x=1", "plain https URL"),
        ("{served}/0123456789abcdef/run.toml", "there is no published run"),
        ("http://runs.example.org/0123456789abcdef/run.toml", "give an https URL"),
        ("https://user@runs.example.org/0123456789abcdef/run.toml", "plain https URL"),
    ],
)
def test_a_url_that_names_no_run_is_told(served: str, source: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        find(source.format(served=served))


def test_a_run_that_is_not_the_one_of_its_name_is_refused(tmp_path: Path, place: Path) -> None:
    (path,) = place.glob("*/run.toml")
    wrong = tmp_path / "0123456789abcdef"
    shutil.copytree(path.parent, wrong)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="another one than it is named after"):
            find(f"http://127.0.0.1:{server.server_port}/0123456789abcdef/run.toml")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_run_toml_by_itself_needs_a_dataset_to_be_named(tmp_path: Path, place: Path) -> None:
    (path,) = place.glob("*/run.toml")
    alone = tmp_path / "run.toml"
    shutil.copy(path, alone)
    published = find(str(alone))
    assert published.base is None
    with pytest.raises(ConfigError, match="give --dataset"):
        open_dataset(published, None)


def open_dataset(published: Published, source: str | None, local_root: Path | None = None) -> None:
    own, others = Transport(Reach.ANY), Transport(Reach.PUBLIC if local_root is None else Reach.ANY)
    asyncio.run(published.open_dataset(source, own, others, local_root))


@pytest.mark.parametrize(
    "told",
    [
        "/etc",
        "https://127.0.0.1:9000/x",
        "https://[::1/x",
        "https://a.example:99999999/x",
        "http://a.example/x",
        "file:///x",
    ],
)
def test_a_publication_may_name_a_dataset_elsewhere_but_nothing_of_this_machine_or_its_network(
    place: Path, told: str
) -> None:
    """It is in no digest: whoever can write the publisher's bucket could send nodes anywhere."""
    published = Published(found_in(place).run, Publication(dataset=told), str(place))
    with pytest.raises(ConfigError, match="names no dataset that could be read"):
        open_dataset(published, None)
    (dataset,) = (place / "datasets").iterdir()
    open_dataset(published, str(dataset))  # what the owner of a node names wins


@pytest.mark.parametrize("url", ["https://user:hunter2@a.example", "https://a.example/x?X-Amz-Signature=hunter2"])
def test_a_url_that_may_hold_a_secret_is_refused_unseen(url: str) -> None:
    for call in (lambda: find(f"{url}/0123456789abcdef/run.toml"), lambda: source_bucket(url, Transport(Reach.ANY))):
        with pytest.raises(ConfigError, match="plain https URL") as refused:
            call()
        assert "hunter2" not in str(refused.value)


def make_public(radosgw: Radosgw, name: str) -> Keys:
    """A bucket that anybody may read without a key."""
    keys = radosgw.create_bucket(name)
    everybody = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    resources = {"Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"]}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everybody | resources]})
    client = boto3.client(
        "s3",
        endpoint_url=radosgw.url,
        region_name="us-east-1",
        aws_access_key_id=keys.write.key_id,
        aws_secret_access_key=keys.write.secret.reveal(),
        config=Config(request_checksum_calculation="when_required"),
    )
    client.put_bucket_policy(Bucket=name, Policy=policy)
    client.close()
    return keys


def test_a_run_is_published_at_a_store_for_everybody(
    radosgw: Radosgw, draft: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = make_public(radosgw, "publisher")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys.write.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys.write.secret.reveal())
    url = f"{radosgw.url}/publisher"
    flags = ["--bucket", f"{url}/runs", "--public-url", f"{url}/runs", "--text", str(text), "--json"]
    capsys.readouterr()
    for _ in range(2):  # the second time finds everything there
        assert cli.main(["run", "publish", str(draft), *flags]) == 0
        told = json.loads(capsys.readouterr().out)
    assert told["run"] == f"{url}/runs/{told['digest'][:16]}/run.toml"
    published = find(told["run"])
    assert published.run.digest() == told["digest"]


def test_a_bucket_that_is_not_public_is_found_out(
    radosgw: Radosgw, draft: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = radosgw.create_bucket("closed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys.write.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys.write.secret.reveal())
    url = f"{radosgw.url}/closed"
    assert cli.main(["run", "publish", str(draft), "--bucket", url, "--public-url", url, "--text", str(text)]) == 9
    assert keys.write.secret.reveal() not in "".join(capsys.readouterr())
