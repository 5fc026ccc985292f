"""An S3 server on this machine: Ceph's radosgw over one monitor and one store, in memory or in a file.

It is the real thing (SigV4, policies, multipart, conditional puts) for tests and for networks on one machine. All it
listens on is the loopback interface, and who has no key gets nothing; it needs no root and no systemd, and serves one
to three seconds after `start`. scripts/install-radosgw installs what it needs.
"""

from __future__ import annotations

import hashlib
import http
import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from neurons.errors import RadosgwError
from storage.credentials import Credentials, Secret
from storage.signing import sign

REGION = "us-east-1"
"""What requests are signed for; radosgw takes any region."""

_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin", "setpriv")

_ATTEMPTS = 3
_PATIENCE_SECONDS = 60.0
"""For one attempt, which takes 1 to 3 s on a quiet machine."""
_REQUEST_SECONDS = 30.0
_PROBE_SECONDS = 2.0
_ASK = ("ceph", "--connect-timeout", "15")
"""A question to the monitor. It may still be starting; if it has ended, as its port was taken, nobody will answer."""
_POLL_SECONDS = 0.02
_LOG_TAIL_LINES = 8

# One copy of each object, and everything turned down that a cluster of hundreds of machines needs: so the first answer
# comes after 1 s instead of 11, and the gateway has 100 threads instead of 600. Paths are relative to the folder.
# Deleted objects above 4 MiB leave the memory a minute later: somebody may still be reading them.
_CONFIGURATION = """\
[global]
fsid = {cluster}
mon_host = {monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
keyring = keyring
chdir =
admin_socket =
crash_dir = log
log_file = log/$name
mon_data = monitor
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
mon_rocksdb_options = write_buffer_size=1048576,max_total_wal_size=2097152,compression=kNoCompression
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_data = store
osd_objectstore = {kind}
memstore_device_bytes = {capacity_bytes}
bluestore_block_size = {capacity_bytes}
bdev_aio_poll_ms = 10
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
bluestore_fsck_on_mount = false
bluestore_fsck_on_umount = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
objecter_tick_interval = 0.1
rgw_data = gateway
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_enable_apis = s3
rgw_thread_pool_size = 64
rgw_num_async_rados_threads = 2
rgw_override_bucket_index_max_shards = 1
rgw_dynamic_resharding = false
rgw_run_sync_thread = false
rgw_enable_lc_threads = false
rgw_enable_quota_threads = false
rgw_gc_obj_min_wait = 60
rgw_gc_processor_period = 30
rgw_gc_processor_max_time = 30
"""
_CONFIGURATION_FILE = "ceph.conf"
_FOLDERS = ("log", "monitor", "store", "gateway")
_STARTED = "started"
"""Exists once a durable server has served. What a first start that was interrupted left behind is made anew."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The two keys of a bucket: `write` owns it, `read` may read and list it and nothing else."""

    write: Credentials
    read: Credentials


@dataclass(frozen=True, slots=True)
class Radosgw:
    """A server that runs until `stop`, or until the thread that started it ends, in whatever way. `url` is where it
    serves; its logs lie in `folder`/log. As a context manager it stops at the end of the block."""

    url: str
    folder: Path
    _processes: Sequence[subprocess.Popen[bytes]] = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """Its processes: monitor, store, gateway."""
        return [process.pid for process in self._processes]

    def create_user(self, name: str, *, buckets: int = 1000) -> Credentials:
        """A new user that may make so many buckets. Raises `RadosgwError` when there is one of this name.

        The server draws the secret and tells it on a pipe, so no list of processes ever shows it."""
        limit = buckets or -1  # to the server 0 means any number, and a negative one none
        told = _run(
            self.folder,
            "radosgw-admin",
            "user",
            "create",
            f"--uid={name}",
            "--display-name=-",
            f"--max-buckets={limit}",
        )
        key = json.loads(told)["keys"][0]
        return Credentials(key["access_key"], Secret(key["secret_key"]))

    def create_bucket(self, name: str) -> Keys:
        """A new bucket with two users of its own. Its owner can make no other, its reader none at all."""
        keys = Keys(self.create_user(f"{name}-write", buckets=1), self.create_user(f"{name}-read", buckets=0))
        grant = {
            "Effect": "Allow",
            "Principal": {"AWS": [f"arn:aws:iam:::user/{name}-read"]},
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{name}", f"arn:aws:s3:::{name}/*"],
        }
        self._put(keys.write, f"/{name}", b"")
        self._put(keys.write, f"/{name}?policy", json.dumps({"Version": "2012-10-17", "Statement": [grant]}).encode())
        return keys

    def stop(self) -> None:
        """End its processes at once: what is in memory goes with them, and what a file is to keep is there already."""
        _kill(self._processes)

    def _put(self, key: Credentials, path: str, body: bytes) -> None:
        digest = hashlib.sha256(body).hexdigest()
        headers = sign(key, REGION, "PUT", self.url + path, {}, body_digest=digest)
        host = self.url.removeprefix("http://")
        with closing(http.client.HTTPConnection(host, timeout=_REQUEST_SECONDS)) as connection:
            connection.request("PUT", path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        if answer.status >= 300:
            raise RadosgwError(f"radosgw answered {answer.status} to PUT {path}: {text}")


def missing() -> list[str]:
    """The programs that a server needs and that are not installed."""
    return [program for program in _PROGRAMS if shutil.which(program) is None]


def start(folder: Path, port: int | None = None, *, durable: bool = False, capacity_bytes: int = 6 << 30) -> Radosgw:
    """Start a server whose files lie in `folder`, on `port` of the loopback interface or on a free one.

    It takes objects of `capacity_bytes` in all. They live in memory, two bytes for each, but only once it is there;
    `folder` must be empty or not there. A `durable` server keeps them in a file of that size, which takes no more of
    the disk than it holds: started again in its folder, whatever ended it, it has all its objects and users, and the
    port and the capacity of the first time. It is about half as fast.

    Raises `RadosgwError`, with the end of the log, when programs are missing, the port is taken or it does not serve in
    time. The processes end with the calling thread, so call it from one that lives as long as they shall.
    """
    if absent := missing():
        raise RadosgwError(f"{', '.join(absent)} not found: run scripts/install-radosgw")
    folder = folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is stored lies open in it
    if durable and (folder / _STARTED).exists():
        return _resume(folder)
    if any(folder.iterdir()) and not (durable and (folder / _CONFIGURATION_FILE).exists()):
        raise RadosgwError(f"{folder} is not empty: give radosgw a folder of its own")
    if port is not None:
        _require_free(port)
    attempt = 1
    while True:
        _empty(folder)
        try:
            server = _found(folder, _Setting(port or _free_port(), str(uuid.uuid4()), durable, capacity_bytes))
        except RadosgwError:
            # A port that was free a moment ago may have been taken since.
            if attempt == _ATTEMPTS:
                raise
            attempt += 1
        else:
            if durable:
                (folder / _STARTED).touch()
            return server


@dataclass(frozen=True, slots=True)
class _Setting:
    """What tells one server from another. `cluster` is a UUID."""

    port: int
    cluster: str
    durable: bool
    capacity_bytes: int

    def write(self, folder: Path) -> None:
        """Write the configuration and where the monitor is this time."""
        monitor = f"[v2:127.0.0.1:{_free_port()}]"
        values = asdict(self) | {"monitor": monitor, "kind": "bluestore" if self.durable else "memstore"}
        (folder / _CONFIGURATION_FILE).write_text(_CONFIGURATION.format_map(values))
        _run(folder, "monmaptool", "--create", "--clobber", "--addv", "a", monitor, "--fsid", self.cluster, "monmap")


def _found(folder: Path, setting: _Setting) -> Radosgw:
    for name in _FOLDERS:
        (folder / name).mkdir()
    setting.write(folder)
    (folder / "keyring").touch(0o600)
    for name in ("mon.", "client.admin", "osd.0"):
        rights = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
        _run(folder, "ceph-authtool", "keyring", "--gen-key", "--name", name, *rights)
    _run(folder, "ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap")
    with _processes() as processes:
        processes.append(_spawn(folder, "ceph-mon", "-i", "a"))
        _run(folder, *_ASK, "osd", "create")
        _run(folder, "ceph-osd", "-i", "0", "--mkfs")
        return _serve(folder, setting.port, processes)


def _resume(folder: Path) -> Radosgw:
    parser = ConfigParser(interpolation=None)
    parser.read(folder / _CONFIGURATION_FILE)
    told = parser["global"]
    port = int(told["rgw_frontends"].rpartition(":")[2])
    _require_free(port)
    _Setting(port, told["fsid"], True, int(told["bluestore_block_size"])).write(folder)
    _run(folder, "ceph-mon", "-i", "a", "--inject-monmap", "monmap")
    with _processes() as processes:
        processes.append(_spawn(folder, "ceph-mon", "-i", "a"))
        # Else the gateway asks the store of the last time, which is gone, and waits 10 s before it looks again.
        _run(folder, *_ASK, "osd", "down", "0")
        return _serve(folder, port, processes)


def _serve(folder: Path, port: int, processes: list[subprocess.Popen[bytes]]) -> Radosgw:
    processes.append(_spawn(folder, "ceph-osd", "-i", "0"))
    processes.append(_spawn(folder, "radosgw", "-n", "client.admin"))
    _wait(folder, port, processes)
    return Radosgw(f"http://127.0.0.1:{port}", folder, tuple(processes))


@contextmanager
def _processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are started in the block, and end when it fails."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    except BaseException:
        _kill(started)
        raise


def _run(folder: Path, program: str, *arguments: str) -> str:
    """What a program prints that ends by itself."""
    try:
        done = subprocess.run(
            _command(program, arguments),
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise RadosgwError(f"{program} did not end within {_PATIENCE_SECONDS:.0f} s\n{_tails(folder)}") from error
    if done.returncode:
        raise RadosgwError(f"{program} ended with {done.returncode}: {done.stderr.strip()}\n{_tails(folder)}")
    return done.stdout


def _spawn(folder: Path, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A program that goes on until it is ended, or this thread ends. It is in a session of its own, where the Ctrl-C
    of a terminal does not reach it: neurons may still have to save something."""
    with (folder / "log" / program).open("wb") as log:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *_command(program, ("-f", *arguments))],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _command(program: str, arguments: Sequence[str]) -> list[str]:
    bare = program in ("ceph-authtool", "monmaptool")  # these two read no configuration
    return [program, *(() if bare else ("-c", _CONFIGURATION_FILE)), *arguments]


def _environment() -> dict[str, str]:
    """Nothing of this process's own: Python's and Ceph's variables would change what the programs do."""
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}


def _wait(folder: Path, port: int, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not _serves(port):
        for process in processes:
            if process.poll() is not None:
                command = shlex.join(process.args).partition(" KILL ")[2]
                raise RadosgwError(f"{command} ended with {process.returncode}\n{_tails(folder)}")
        if time.monotonic() > deadline:
            raise RadosgwError(f"radosgw did not serve within {_PATIENCE_SECONDS:.0f} s\n{_tails(folder)}")
        time.sleep(_POLL_SECONDS)


def _serves(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_SECONDS)) as connection:
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        return answer.status == http.HTTPStatus.OK and b"ListAllMyBucketsResult" in answer.read()


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def _tails(folder: Path) -> str:
    """The last lines of every log."""
    tails = []
    for log in sorted((folder / "log").iterdir()):
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        tails += [f"{log.name}: {line}" for line in lines[-_LOG_TAIL_LINES:]]
    return "\n".join(tails)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _require_free(port: int) -> None:
    # Else the answers of whoever listens there would be taken for our server's.
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the past are no hindrance
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise RadosgwError(f"port {port} is taken: end what listens there, or choose another") from error


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
