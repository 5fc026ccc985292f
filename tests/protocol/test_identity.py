"""Canonical JSON, digests and signatures, against documents made to deceive."""

from __future__ import annotations

import json
import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

import pytest
from bittensor_core import Keypair
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import DocumentError
from protocol.identity import Document, SignedDocument, canonical_json, digest_of, public_key


class Note(SignedDocument):
    """A document with a field of each kind."""

    number: int = 0
    share: float = 0.5
    text: str = ""


@pytest.fixture(scope="module")
def note(alice: Keypair) -> Note:
    return Note(signer=alice.ss58_address, number=3, text="θ").signed(alice)


def test_canonical_json_has_sorted_keys_no_white_space_and_plain_utf8() -> None:
    assert canonical_json({"b": [1, 2.0, None, True], "a": 'θ/"\n\x1f'}) == (
        '{"a":"θ/\\"\\n\\u001f","b":[1,2.0,null,true]}'.encode()
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (0.1, "0.1"),
        (1e-4, "0.0001"),
        (1e-5, "1e-05"),
        (1e15, "1000000000000000.0"),
        (1e16, "1e+16"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (1 / 3, "0.3333333333333333"),
    ],
)
def test_floats_have_one_form(value: float, text: str) -> None:
    assert canonical_json(value) == text.encode()


def second_float(value: float) -> str:
    """docs/protocol.md, section 4, "Canonical JSON": the form of a float from its shortest digits."""
    exact = Decimal(abs(value))
    for precision in range(1, 18):
        rounded = [Context(precision, rounding).plus(exact) for rounding in (ROUND_FLOOR, ROUND_CEILING)]
        fits = [decimal for decimal in rounded if float(decimal) == abs(value)]
        if fits:
            break
    best = min(fits, key=lambda decimal: (abs(decimal - exact), decimal.as_tuple().digits[-1] % 2))
    digits, e = "".join(map(str, best.as_tuple().digits)), best.adjusted() if best else 0
    digits, sign = digits.rstrip("0") or "0", "-" if math.copysign(1, value) < 0 else ""
    if not -4 <= e < 16:
        return f"{sign}{digits[0]}{'.' + digits[1:] if digits[1:] else ''}e{'-' if e < 0 else '+'}{abs(e):02d}"
    if e < 0:
        return f"{sign}0.{'0' * (-e - 1)}{digits}"
    whole, rest = digits[: e + 1].ljust(e + 1, "0"), digits[e + 1 :]
    return f"{sign}{whole}.{rest or '0'}"


@example(2.0**-24)
@example(5e-324)
@example(694403206548407.75)
@example(9007199254740993.0)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_second_implementation_writes_floats_alike(value: float) -> None:
    assert canonical_json(value).decode() == second_float(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_canonical_json_carries_no_nan_and_no_infinity(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([value])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_survives_its_canonical_form_to_the_bit(value: float) -> None:
    assert json.loads(canonical_json(value)).hex() == value.hex()


def test_a_digest_is_blake3() -> None:
    assert digest_of(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_a_signed_document_verifies_also_after_a_journey(note: Note, alice: Keypair) -> None:
    arrived = Note.parse(note.canonical())
    arrived.verify()
    arrived.verify(alice.ss58_address)
    assert arrived == note


def test_the_digest_leaves_out_the_signature_and_nothing_else(note: Note, alice: Keypair, bob: Keypair) -> None:
    digest = note.digest()
    assert note.model_copy(update={"signature": ""}).digest() == digest
    assert note.signed(alice).digest() == digest
    for change in ({"number": 4}, {"share": 0.25}, {"text": "t"}, {"signer": bob.ss58_address}):
        assert note.model_copy(update=change).digest() != digest


def test_the_digest_does_not_depend_on_how_the_published_text_was_laid_out(note: Note) -> None:
    spread = json.dumps(dict(reversed(note.model_dump(mode="json").items())), indent=4).encode()
    arrived = Note.parse(spread)
    arrived.verify()
    assert arrived.digest() == note.digest()


@pytest.mark.parametrize("change", [{"number": 4}, {"share": 0.25}, {"text": "o"}])
def test_a_changed_document_does_not_verify(note: Note, change: dict[str, Any]) -> None:
    with pytest.raises(DocumentError, match="does not verify"):
        note.model_copy(update=change).verify()


def test_no_bit_of_a_signature_may_change(note: Note) -> None:
    raw = bytes.fromhex(note.signature)
    for bit in range(0, 512, 37):
        forged = bytearray(raw)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DocumentError, match="does not verify"):
            note.model_copy(update={"signature": forged.hex()}).verify()


def test_a_missing_signature_does_not_verify(note: Note) -> None:
    with pytest.raises(DocumentError, match="does not verify"):
        note.model_copy(update={"signature": ""}).verify()


def test_another_signer_is_not_the_expected_one(note: Note, bob: Keypair) -> None:
    with pytest.raises(DocumentError, match="expected"):
        note.verify(bob.ss58_address)


def test_one_key_cannot_pass_for_two_hotkeys_by_another_address_format(alice: Keypair) -> None:
    alias = Keypair(public_key=alice.public_key, ss58_format=0).ss58_address
    assert alias != alice.ss58_address
    assert public_key(alias) == public_key(alice.ss58_address)
    with pytest.raises(DocumentError, match="names"):
        Note(signer=alias).signed(alice)
    with pytest.raises(DocumentError, match="expected"):
        Note(signer=alias).verify(alice.ss58_address)


def test_nobody_signs_in_another_name(alice: Keypair, bob: Keypair) -> None:
    with pytest.raises(DocumentError, match="names"):
        Note(signer=bob.ss58_address).signed(alice)


def test_a_signature_covers_the_32_bytes_of_the_digest(note: Note, alice: Keypair) -> None:
    body = canonical_json({"number": 3, "share": 0.5, "signer": alice.ss58_address, "text": "θ"})
    assert alice.verify(blake3(body).digest(), bytes.fromhex(note.signature))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"unknown": 1}, "unknown"),
        ({"number": 1.0}, "number"),
        ({"number": "1"}, "number"),
        ({"number": True}, "number"),
        ({"number": None}, "number"),
        ({"share": "0.5"}, "share"),
        ({"text": 1}, "text"),
        ({"signer": "short"}, "signer"),
        ({"signer": "../../../../../../../../../../../../../../../etc"}, "signer"),
        ({"signature": "00"}, "signature"),
        ({"signature": "A0" * 64}, "signature"),
        ({"signature": "00" * 64 + "\n"}, "signature"),
    ],
)
def test_a_wrong_field_is_named(note: Note, change: dict[str, Any], field: str) -> None:
    with pytest.raises(DocumentError, match=f"Note: {field}: "):
        Note.parse(json.dumps(note.model_dump(mode="json") | change).encode())


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DocumentError, match="Note: signer: Field required"):
        Note.parse(b"{}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_a_float_is_finite(note: Note, number: str) -> None:
    text = note.canonical().replace(b'"share":0.5', f'"share":{number}'.encode())
    with pytest.raises(DocumentError):
        Note.parse(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"number":' + b"9" * 60_000 + b"}",
        b'{"text":"\\ud800"}',
    ],
    ids=["empty", "null", "list", "open", "not UTF-8", "deep list", "deep object", "huge integer", "lone surrogate"],
)
def test_what_is_no_document_is_refused_whatever_it_is(data: bytes) -> None:
    with pytest.raises(DocumentError):
        Note.parse(data)


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_but_a_document_error(data: bytes) -> None:
    with pytest.raises(DocumentError):
        Note.parse(data)


def test_what_a_peer_calls_a_field_reaches_no_screen_raw_or_at_length(note: Note) -> None:
    evil = "\x1b[31m[red]\n" + "z" * 50_000
    with pytest.raises(DocumentError) as caught:
        Note.parse(json.dumps(note.model_dump(mode="json") | {evil: 1}).encode())
    message = str(caught.value)
    assert len(message) < 200
    assert message.isprintable()


BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@given(st.text(BASE58, min_size=46, max_size=50))
def test_what_only_looks_like_an_address_is_refused(address: str) -> None:
    with pytest.raises(DocumentError, match="is not an ss58 address"):
        Note(signer=address, signature="00" * 64).verify()


def test_an_address_with_one_wrong_letter_is_none(alice: Keypair) -> None:
    address = alice.ss58_address
    with pytest.raises(DocumentError):
        public_key(address[:10] + ("A" if address[10] != "A" else "B") + address[11:])


def test_a_document_cannot_be_made_with_a_loose_type() -> None:
    class Count(Document):
        value: int

    with pytest.raises(ValueError, match="valid integer"):
        Count(value="3")
