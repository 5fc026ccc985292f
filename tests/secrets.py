"""Looking for secrets in what a program wrote, under every disguise that printing and encoding give them.

`found` searches bytes; `Harvest` runs a command with secrets planted in it, under every log level and with a crash if
asked for, and collects all that its processes wrote or showed: output, files, command lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

_SHORTEST_BYTES = 8
"""What is shorter would be found by chance."""


def disguises(secret: bytes) -> set[bytes]:
    """`secret` plain, in both cases of hexadecimal, in base64 at all three offsets, URL-encoded, and as Python or JSON
    would print it. Hexadecimal digits are also looked for as the bytes they stand for."""
    assert len(secret) >= _SHORTEST_BYTES
    forms = {secret, secret.hex().encode(), secret.hex().upper().encode(), secret.hex(" ").encode()}
    forms |= {
        quote(secret, safe="").encode(),
        quote(secret).encode(),
        secret.replace(b"/", b"%2F"),
        repr(secret)[2:-1].encode(),
    }
    forms |= {json.dumps(secret.decode("latin-1"))[1:-1].encode(), str(list(secret))[1:-1].encode()}
    for offset in range(3):
        # Without the characters that also hold bits of what stands before and after.
        cut = slice(-(-offset * 8 // 6) if offset else 0, (offset + len(secret)) * 8 // 6)
        forms |= {encode(bytes(offset) + secret)[cut] for encode in (b64encode, urlsafe_b64encode)}
    try:
        raw = bytes.fromhex(secret.decode("ascii"))
    except ValueError:
        return forms
    return forms | (disguises(raw) if len(raw) >= _SHORTEST_BYTES else set())


def found(data: bytes, planted: Mapping[str, bytes]) -> list[str]:
    """The names of the planted secrets that occur in `data` in any disguise."""
    return [name for name, secret in planted.items() if any(form in data for form in disguises(secret))]


_INJECTED = '''
import logging, os, sys
level = int(os.environ["TEST_LOG_LEVEL"])
configure = logging.basicConfig
def basicConfig(**options):
    configure(**{**options, "level": level})
    logging.getLogger().setLevel(level)
    for name in ("asyncio", "aiohttp", "boto3", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(level)
    logging.getLogger("numba").setLevel(logging.WARNING)  # what it compiles, line by line: minutes of it
logging.basicConfig = basicConfig
crash = os.environ.get("TEST_CRASH_IN")
if crash:
    class Finder:
        """Replaces one function by one that raises, once its module is there."""
        def find_spec(self, name, path, target=None):
            module, _, function = crash.partition(":")
            if name != module:
                return None
            sys.meta_path.remove(self)
            import importlib.util
            spec = importlib.util.find_spec(name)
            execute = spec.loader.exec_module
            def exec_module(made):
                execute(made)
                *owners, last = function.split(".")
                owner = made
                for part in owners:
                    owner = getattr(owner, part)
                def injected(*args, **named):
                    raise RuntimeError("injected crash")
                setattr(owner, last, injected)
            spec.loader.exec_module = exec_module
            return spec
    sys.meta_path.insert(0, Finder())
'''


@dataclass(frozen=True)
class Harvest:
    """Everything that the processes of one command wrote or showed, by where it was seen."""

    pieces: Mapping[str, bytes]
    exit_code: int

    def leaks(self, planted: Mapping[str, bytes], *, public: Mapping[str, bytes] | None = None) -> dict[str, list[str]]:
        """Where which secret was seen. `planted` may be nowhere; `public` (what the node itself commits on chain) may
        be in the built-in chain's file and in the `location` of a manifest's contributions, and nowhere else."""
        leaks = {where: found(data, planted) for where, data in self.pieces.items()}
        for where, data in self.pieces.items():
            if not _is_chain(where):
                leaks[where] += found(_without_locations(where, data), public or {})
        return {where: names for where, names in leaks.items() if names}


def harvest(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    log_level: int,
    crash_in: str | None = None,
    until: Callable[[Path], bool] = lambda folder: False,
    limit_seconds: float = 60.0,
) -> Harvest:
    """Run `command` until it ends, `until` says of `folder` that enough was written, or the limit is reached, then
    interrupt it. `folder` is all that it writes to. `crash_in` is `module:function` or `module:Class.function`."""
    hooks = folder.parent / f"{folder.name}-hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(_INJECTED)
    variables = {**environment, "TEST_LOG_LEVEL": str(log_level)}
    variables["PYTHONPATH"] = os.pathsep.join([str(hooks), str(Path(__file__).parents[1])])
    if crash_in is not None:
        variables["TEST_CRASH_IN"] = crash_in
    shown: set[bytes] = set()
    out, err = hooks / "stdout", hooks / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, env=variables, stdout=stdout, stderr=stderr, start_new_session=True)
        end = time.monotonic() + limit_seconds
        while process.poll() is None and time.monotonic() < end and not until(folder):
            shown |= set(_command_lines(process.pid))
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    pieces = {"command lines": b"\n".join(sorted(shown)), "stdout": out.read_bytes(), "stderr": err.read_bytes()}
    pieces |= {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pieces |= {f"name of {path.name}": os.fsencode(path) for path in folder.rglob("*")}
    return Harvest(pieces, process.returncode)


def windrow(*arguments: str) -> list[str]:
    """The command line of `windrow`, run from this checkout."""
    return [sys.executable, "-c", "import sys; from neurons.cli import main; sys.exit(main())", *arguments]


def _command_lines(session: int) -> Iterator[bytes]:
    """What `ps` shows of every process of `session`: anyone on the machine can read it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[3]) == session:
                yield (process / "cmdline").read_bytes().replace(b"\0", b" ")


def _is_chain(where: str) -> bool:
    return where.startswith("chain.sqlite")


def _without_locations(where: str, data: bytes) -> bytes:
    """A manifest without the locations of its contributions; every other file as it is."""
    if "/ledger/" not in where or not where.endswith(".json"):
        return data
    try:
        document = json.loads(data)
    except ValueError:
        return data
    for contribution in document.get("contributions", []):
        contribution.pop("location", None)
    return json.dumps(document).encode()
