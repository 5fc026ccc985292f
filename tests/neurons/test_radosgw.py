"""The S3 server of tests and of networks on one machine: what its keys may do, and how it starts and ends."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from neurons import radosgw as server
from neurons.errors import RadosgwError
from neurons.radosgw import Radosgw
from storage.credentials import Credentials

Connect = Callable[[Radosgw, Credentials | None], Any]

_LOOPBACK = "0100007F"
"""127.0.0.1 as /proc/net/tcp writes it."""


@pytest.fixture
def connect() -> Iterator[Connect]:
    """An S3 client with a key, or without any."""
    with ExitStack() as clients:

        def connect(running: Radosgw, key: Credentials | None) -> Any:
            client = boto3.client(
                "s3",
                endpoint_url=running.url,
                region_name=server.REGION,
                aws_access_key_id=key and key.key_id,
                aws_secret_access_key=key and key.secret.reveal(),
                config=Config(signature_version=UNSIGNED if key is None else None, retries={"max_attempts": 0}),
            )
            return clients.enter_context(closing(client))

        yield connect


def _refused(error: pytest.ExceptionInfo[ClientError]) -> bool:
    return error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_the_write_key_writes_and_the_read_key_reads_and_lists(radosgw: Radosgw, connect: Connect) -> None:
    keys = radosgw.create_bucket("two-keys")
    connect(radosgw, keys.write).put_object(Bucket="two-keys", Key="a/b", Body=b"hay")
    reader = connect(radosgw, keys.read)
    assert reader.get_object(Bucket="two-keys", Key="a/b")["Body"].read() == b"hay"
    assert [each["Key"] for each in reader.list_objects_v2(Bucket="two-keys")["Contents"]] == ["a/b"]


def test_the_read_key_can_change_nothing(radosgw: Radosgw, connect: Connect) -> None:
    keys = radosgw.create_bucket("read-only")
    connect(radosgw, keys.write).put_object(Bucket="read-only", Key="a", Body=b"hay")
    reader = connect(radosgw, keys.read)
    for change in (
        lambda: reader.put_object(Bucket="read-only", Key="a", Body=b"straw"),
        lambda: reader.put_object(Bucket="read-only", Key="b", Body=b"straw"),
        lambda: reader.delete_object(Bucket="read-only", Key="a"),
        lambda: reader.create_multipart_upload(Bucket="read-only", Key="c"),
        lambda: reader.put_bucket_policy(Bucket="read-only", Policy="{}"),
        lambda: reader.delete_bucket(Bucket="read-only"),
        lambda: reader.create_bucket(Bucket="its-own"),
    ):
        with pytest.raises(ClientError) as error:
            change()
        assert _refused(error)
    assert reader.get_object(Bucket="read-only", Key="a")["Body"].read() == b"hay"


def test_who_has_no_key_or_that_of_another_bucket_gets_nothing(radosgw: Radosgw, connect: Connect) -> None:
    mine, other = radosgw.create_bucket("mine"), radosgw.create_bucket("other")
    connect(radosgw, mine.write).put_object(Bucket="mine", Key="a", Body=b"hay")
    for key in (None, other.read, other.write):
        with pytest.raises(ClientError) as error:
            connect(radosgw, key).get_object(Bucket="mine", Key="a")
        assert _refused(error)


def test_a_name_is_given_once(radosgw: Radosgw) -> None:
    radosgw.create_user("somebody")
    with pytest.raises(RadosgwError, match="exists"):
        radosgw.create_user("somebody")


def test_two_servers_run_side_by_side_and_know_nothing_of_each_other(
    radosgw: Radosgw, connect: Connect, tmp_path: Path
) -> None:
    key = radosgw.create_user("of-the-first")
    with server.start(tmp_path / "second", capacity_bytes=1 << 28) as second:
        assert second.url != radosgw.url
        connect(radosgw, key).list_buckets()
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            connect(second, key).list_buckets()
    assert not any(Path(f"/proc/{pid}").exists() for pid in second.pids)


def test_it_listens_on_the_loopback_interface_only(radosgw: Radosgw) -> None:
    sockets = {os.readlink(path) for pid in radosgw.pids for path in Path(f"/proc/{pid}/fd").iterdir()}
    addresses = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:  # 0A: it listens
                addresses.append(local.split(":")[0])
    assert set(addresses) == {_LOOPBACK}


def test_its_processes_end_when_the_one_that_started_it_is_killed(radosgw: Radosgw, tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from neurons import radosgw
print(*radosgw.start(Path({str(tmp_path / "orphan")!r})).pids, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        handles = [os.pidfd_open(pid) for pid in pids]
        parent.send_signal(signal.SIGKILL)
    for handle in handles:
        ended, _, _ = select.select([handle], [], [], 60)  # readable when its process has ended
        assert ended
        os.close(handle)


def test_a_durable_server_goes_on_where_it_was_killed(radosgw: Radosgw, connect: Connect, tmp_path: Path) -> None:
    """`stop` is a kill: nothing is saved on the way out."""
    with server.start(tmp_path / "server", durable=True, capacity_bytes=1 << 30) as first:
        keys = first.create_bucket("kept")
        connect(first, keys.write).put_object(Bucket="kept", Key="a", Body=b"hay" * 1_000_000)
    with server.start(tmp_path / "server", durable=True, capacity_bytes=1 << 30) as second:
        assert second.url == first.url
        assert connect(second, keys.read).get_object(Bucket="kept", Key="a")["Body"].read() == b"hay" * 1_000_000
        connect(second, keys.write).put_object(Bucket="kept", Key="b", Body=b"more hay")
        with pytest.raises(ClientError) as error:
            connect(second, keys.read).delete_object(Bucket="kept", Key="a")
        assert _refused(error)


def test_a_durable_server_whose_first_start_was_interrupted_is_made_anew(radosgw: Radosgw, tmp_path: Path) -> None:
    (tmp_path / "ceph.conf").write_text("[global]\n")
    (tmp_path / "store").mkdir()
    with server.start(tmp_path, durable=True, capacity_bytes=1 << 30) as running:
        running.create_user("somebody")


def test_a_port_that_is_taken_is_refused(radosgw: Radosgw, tmp_path: Path) -> None:
    port = int(radosgw.url.rpartition(":")[2])
    with pytest.raises(RadosgwError, match=f"port {port} is taken"):
        server.start(tmp_path / "server", port=port)


def test_a_start_that_fails_shows_the_end_of_the_log_and_leaves_no_process(
    radosgw: Radosgw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_ATTEMPTS", 1)
    monkeypatch.setattr(server, "_require_free", lambda port: None)  # as if it were taken just after we looked
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(RadosgwError, match=rf"(?s)radosgw .* ended with {errno.EADDRINUSE}\n.*mon\.a: "):
            server.start(tmp_path / "server", port=taken.getsockname()[1])
    working = [os.path.realpath(path) for path in Path("/proc").glob("[0-9]*/cwd") if os.access(path, os.R_OK)]
    assert str(tmp_path / "server") not in working


def test_a_folder_with_something_in_it_is_refused(radosgw: Radosgw, tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("dear diary")
    with pytest.raises(RadosgwError, match="is not empty"):
        server.start(tmp_path)
    assert (tmp_path / "diary").exists()


def test_what_is_not_installed_is_named_with_the_script_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RadosgwError, match=r"radosgw.* not found: run scripts/install-radosgw"):
        server.start(tmp_path / "server")
