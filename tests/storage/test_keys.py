"""The names of objects: the layout of protocol §6, and that no foreign text can bend it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.bucket import check_key
from storage.errors import BadKey
from storage.keys import Keys

HOTKEY = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
KEYS = Keys("0123456789abcdef")

LAYOUT = [
    (KEYS.run_toml(), "0123456789abcdef/run.toml"),
    (KEYS.window_prefix(7), "0123456789abcdef/00000007/"),
    (KEYS.seal(7, HOTKEY), f"0123456789abcdef/00000007/{HOTKEY}/seal.json"),
    (KEYS.shard(7, HOTKEY, 0), f"0123456789abcdef/00000007/{HOTKEY}/shard-00000"),
    (KEYS.shard(7, HOTKEY, 99_999), f"0123456789abcdef/00000007/{HOTKEY}/shard-99999"),
    (KEYS.key(7, HOTKEY), f"0123456789abcdef/00000007/{HOTKEY}/key.json"),
    (KEYS.manifest(7), "0123456789abcdef/ledger/00000007.json"),
    (KEYS.ledger_head(), "0123456789abcdef/ledger/head.json"),
    (KEYS.manifest_of(7, "ab" * 32), f"0123456789abcdef/manifests/00000007/{'ab' * 32}.json"),
    (KEYS.ballots(), "0123456789abcdef/ballots.json"),
    (KEYS.evidence(7, HOTKEY, "votes"), f"0123456789abcdef/evidence/00000007/{HOTKEY}-votes.json"),
    (KEYS.receipts(7), "0123456789abcdef/receipts/00000007.json"),
    (KEYS.receipts_head(), "0123456789abcdef/receipts/head.json"),
    (KEYS.checkpoint(99_999_999, "index.json"), "0123456789abcdef/checkpoints/99999999/index.json"),
    (KEYS.checkpoint_latest(), "0123456789abcdef/checkpoints/latest.json"),
]


@pytest.mark.parametrize(("key", "expected"), LAYOUT)
def test_objects_have_the_names_of_the_protocol(key: str, expected: str) -> None:
    assert key == expected
    check_key(key.rstrip("/"))


@pytest.mark.parametrize(
    "run", ["", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef0", "../3456789abcdef", "0" * 15 + "\n"]
)
def test_a_run_that_is_no_digest_is_refused(run: str) -> None:
    with pytest.raises(BadKey):
        Keys(run)


@pytest.mark.parametrize(
    "hotkey",
    ["", "..", "../" * 16, "ledger", HOTKEY[:45], HOTKEY + "abc", f"{HOTKEY[:-1]}/", f"{HOTKEY[:-1]}0", HOTKEY + "\n"],
)
@pytest.mark.parametrize("name", [KEYS.seal, KEYS.key, lambda window, hotkey: KEYS.shard(window, hotkey, 0)])
def test_a_hotkey_that_is_no_address_is_refused(name: Callable[[int, str], str], hotkey: str) -> None:
    with pytest.raises(BadKey, match="ss58"):
        name(7, hotkey)


@pytest.mark.parametrize("window", [-1, 10**8])
def test_a_window_that_does_not_fit_eight_digits_is_refused(window: int) -> None:
    for name in (KEYS.window_prefix, KEYS.manifest, KEYS.receipts):
        with pytest.raises(BadKey):
            name(window)
    with pytest.raises(BadKey):
        KEYS.seal(window, HOTKEY)
    with pytest.raises(BadKey):
        KEYS.checkpoint(window, "index.json")


@pytest.mark.parametrize("index", [-1, 10**5])
def test_a_shard_number_that_does_not_fit_five_digits_is_refused(index: int) -> None:
    with pytest.raises(BadKey):
        KEYS.shard(7, HOTKEY, index)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../latest.json", "a b"])
def test_a_name_in_a_checkpoint_is_one_plain_part(name: str) -> None:
    with pytest.raises(BadKey):
        KEYS.checkpoint(7, name)


def test_keys_sort_by_window() -> None:
    windows = [0, 1, 9, 10, 99, 100, 99_999_999]
    for name in (KEYS.window_prefix, KEYS.manifest, KEYS.receipts):
        assert sorted(map(name, windows)) == list(map(name, windows))


def test_only_seals_shards_and_reveals_of_this_run_belong_to_a_window() -> None:
    assert [KEYS.window_of(key) for key, _ in LAYOUT] == [None, 7, 7, 7, 7, 7] + [None] * 9
    assert KEYS.window_of(Keys("f" * 16).seal(7, HOTKEY)) is None
    assert KEYS.window_of("0123456789abcdef/7/x") is None
    assert KEYS.window_of("0123456789abcdef/00000007") is None
    assert KEYS.window_of("0123456789abcdef/٠٠٠٠٠٠٠٧/x") is None


def test_only_what_lies_in_a_checkpoint_belongs_to_its_window() -> None:
    assert [KEYS.checkpoint_window_of(key) for key, _ in LAYOUT] == [None] * 13 + [99_999_999, None]


def test_a_digest_or_a_kind_of_evidence_that_is_none_is_refused() -> None:
    for digest in ("", "ab" * 31, "AB" * 32, "../" + "a" * 61):
        with pytest.raises(BadKey, match="digest"):
            KEYS.manifest_of(7, digest)
    with pytest.raises(BadKey):
        KEYS.evidence(7, HOTKEY, "of a kind")


def test_only_a_manifest_by_digest_has_the_window_of_one() -> None:
    assert KEYS.manifest_window_of(KEYS.manifest_of(7, "ab" * 32)) == 7
    assert KEYS.manifest_window_of(KEYS.manifest(7)) is None
