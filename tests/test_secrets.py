"""The search for secrets finds what a program lets out, wherever and however: or its silence would mean nothing."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from tests.secrets import Harvest, disguises, found, harvest

SECRET = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCY"
PLANTED = {"write secret": SECRET}


@pytest.mark.parametrize("secret", [SECRET, b"a1b2c3d4" * 8, bytes(range(0x80, 0xA0)), "pass wörd & more".encode()])
def test_every_disguise_is_found_amid_other_bytes(secret: bytes) -> None:
    for form in disguises(secret):
        assert found(b"\0before" + form + b"after\xff", {"it": secret}) == ["it"]
    assert found(b"nothing of it, not even " + secret[1:-1], {"it": secret}) == []


def test_a_secret_in_the_middle_of_a_longer_base64_text_is_found() -> None:
    from base64 import b64encode

    for before in range(6):
        assert found(b64encode(b"x" * before + SECRET + b"yy"), PLANTED) == ["write secret"]


def test_hexadecimal_digits_are_found_as_the_bytes_they_stand_for() -> None:
    assert found(b"..." + bytes.fromhex("0f" * 16), {"key": b"0f" * 16}) == ["key"]


LEAKS = {
    "stdout": "print(secret)",
    "stderr": "import base64; print(base64.b64encode(secret.encode()).decode(), file=sys.stderr)",
    "a log at debug only": "logging.getLogger('botocore.auth').debug('signing with %r', secret)",
    "the message of a crash": "raise SystemExit(json.dumps({'key': secret}))",
    "a file": "open(os.path.join(folder, 'state.json'), 'w').write(secret.encode().hex())",
    "the name of a file": "open(os.path.join(folder, secret.encode().hex()), 'w')",
    "a child's command line": (
        "import subprocess; subprocess.run([sys.executable, '-c', 'import time; time.sleep(1)', secret])"
    ),
    "its own command line": "",
}


def run(code: str, folder: Path, log_level: int = logging.DEBUG, extra: tuple[str, ...] = ()) -> Harvest:
    folder.mkdir(exist_ok=True)
    program = (
        "import json, logging, os, sys; logging.basicConfig(level=logging.WARNING); "
        f"secret, folder = os.environ['PLANTED'], {str(folder)!r}; {code}"
    )
    return harvest(
        [sys.executable, "-c", program, *extra],
        folder=folder,
        environment={"PLANTED": SECRET.decode()},
        log_level=log_level,
    )


@pytest.mark.parametrize("how", LEAKS)
def test_each_way_out_is_watched(how: str, tmp_path: Path) -> None:
    extra = (SECRET.decode(), "sleep") if how == "its own command line" else ()
    code = LEAKS[how] or "import time; time.sleep(0.5)"
    assert run(code, tmp_path / "folder", extra=extra).leaks(PLANTED)
    assert not run("import time", tmp_path / "other").leaks(PLANTED)


def test_the_log_level_asked_for_is_the_one_that_holds(tmp_path: Path) -> None:
    code = LEAKS["a log at debug only"]
    assert not run(code, tmp_path / "folder", log_level=logging.INFO).leaks(PLANTED)
    assert run(code, tmp_path / "folder", log_level=logging.DEBUG).leaks(PLANTED)


def test_a_crash_is_injected_where_asked(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    seen = harvest(
        [sys.executable, "-c", "import colorsys; colorsys.rgb_to_hsv(1, 1, 1)"],
        folder=folder,
        environment={},
        log_level=logging.DEBUG,
        crash_in="colorsys:rgb_to_hsv",
    )
    assert b"RuntimeError: injected crash" in seen.pieces["stderr"]
    assert seen.exit_code == 1


def test_a_program_that_does_not_end_is_interrupted_once_it_wrote_enough(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    program = f"import time; open({str(folder / 'done')!r}, 'w'); time.sleep(600)"
    seen = harvest(
        [sys.executable, "-c", program],
        folder=folder,
        environment={},
        log_level=logging.INFO,
        until=lambda place: (place / "done").exists(),
    )
    assert b"KeyboardInterrupt" in seen.pieces["stderr"]


def test_what_is_public_is_let_pass_in_the_chain_and_in_locations_of_manifests_only() -> None:
    read = {"read secret": SECRET}
    manifest = {"contributions": [{"location": SECRET.hex()}], "rejected": []}
    allowed = {
        "chain.sqlite": SECRET,
        "chain.sqlite-wal": SECRET,
        "buckets/peer/0123456789abcdef/ledger/00000003.json": json.dumps(manifest).encode(),
    }
    assert Harvest(allowed, 0).leaks({}, public=read) == {}
    assert set(Harvest(allowed, 0).leaks(read)) == set(allowed)
    elsewhere = {
        "stdout": SECRET,
        "nodes/m/log": json.dumps(manifest).encode(),
        "buckets/peer/0123456789abcdef/receipts/00000003.json": json.dumps(manifest).encode(),
        "buckets/peer/0123456789abcdef/ledger/00000004.json": json.dumps({"detail": SECRET.decode()}).encode(),
        "buckets/peer/0123456789abcdef/ledger/00000005.json": SECRET,
    }
    assert set(Harvest(elsewhere, 0).leaks({}, public=read)) == set(elsewhere)
