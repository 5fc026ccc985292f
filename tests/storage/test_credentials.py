"""Secrets: nothing that prints, formats, logs, dumps, copies or walks over one shows it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Callable

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.pretty import pretty_repr
from rich.traceback import Traceback

from storage.credentials import MASK, Credentials, Secret
from storage.errors import BadCredentials
from tests.secrets import disguises, found

TEXT = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzzyxw23%40"
KEY_ID = "AKIAIOSFODNN7EXAMPLE"
SECRET = Secret(TEXT)
CREDENTIALS = Credentials(KEY_ID, SECRET)


class Settings(BaseModel):
    """A secret as a field, as the settings have it."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    secret: Secret
    threads: int = 1


def logged(value: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.emit(logging.LogRecord("test", logging.DEBUG, __file__, 1, "%s %r", (value, value), None))
    return stream.getvalue()


def rich_printed(value: object) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(value, {"in": [value]}, pretty_repr(value))
    return console.export_text()


def rich_inspected(value: object) -> str:
    from rich import inspect as rich_inspect

    console = Console(file=io.StringIO(), width=200, record=True)
    rich_inspect(value, console=console, all=True, value=True)
    return console.export_text()


def walked(value: object) -> str:
    """What a program shows that looks at every attribute, slot and closure name."""
    shown = [f"{name}={getattr(value, name, None)!r}" for name in dir(value)]
    return "\n".join(shown) + str(inspect.getmembers(value))


SHOWN: dict[str, Callable[[object], object]] = {
    "repr": repr,
    "str": str,
    "ascii": ascii,
    "format": format,
    "f-string": lambda value: f"{value} {value!r} {value!s} {value!a}",
    "percent": lambda value: "%s %r %a" % (value, value, value),  # noqa: UP031
    "in containers": lambda value: f"{[value]} {(value,)} {{1: value}} { {value} }",
    "pprint": pprint.pformat,
    "log": logged,
    "json with a fallback": lambda value: json.dumps([value], default=str),
    "rich": rich_printed,
    "rich inspect": rich_inspected,
    "walk": walked,
    "copies": lambda value: repr(copy.copy(value)) + repr(copy.deepcopy([value])),
    "hash": lambda value: f"{hash(value)}",
    "doc": lambda value: f"{type(value).__doc__} {value.__doc__}",
    "exception": lambda value: repr(ValueError(value)) + str(ValueError(value)) + str(KeyError(value)),
}


@pytest.mark.parametrize("way", SHOWN, ids=str)
def test_no_way_of_showing_a_secret_or_credentials_shows_it(way: str) -> None:
    for value in (SECRET, CREDENTIALS):
        shown = str(SHOWN[way](value))
        assert found(shown.encode("utf-8", "surrogatepass"), {"secret": TEXT.encode()}) == []


def test_the_search_itself_finds_every_disguise() -> None:
    for form in disguises(TEXT.encode()):
        assert found(b"before " + form + b" after", {"secret": TEXT.encode()}) == ["secret"]
    assert found(b"nothing here", {"secret": TEXT.encode()}) == []


@pytest.mark.parametrize("specification", ["", "s", ">60", "d", "x", ".3f"])
def test_no_format_specification_shows_it(specification: str) -> None:
    assert format(SECRET, specification) == MASK


def test_asdict_and_vars_show_nothing() -> None:
    assert repr(dataclasses.asdict(CREDENTIALS)) == f"{{'key_id': '{KEY_ID}', 'secret': {MASK}}}"
    with pytest.raises(TypeError):
        vars(SECRET)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled_and_not_dumped_as_json(protocol: int) -> None:
    for value in (SECRET, CREDENTIALS, [SECRET]):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(value, protocol)
        with pytest.raises(TypeError):
            json.dumps(value)


def _fail(secret: Secret, credentials: Credentials) -> None:
    local = {"credentials": credentials, "again": [secret]}
    raise RuntimeError(f"no use for {local} and {secret!r}")


def test_a_crash_report_that_shows_all_locals_shows_no_secret() -> None:
    try:
        _fail(SECRET, CREDENTIALS)
    except RuntimeError as error:
        plain = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        console = Console(file=io.StringIO(), width=200, record=True)
        console.print(Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True))
    assert MASK in plain
    assert found(plain.encode(), {"secret": TEXT.encode()}) == []
    assert found(console.export_text().encode(), {"secret": TEXT.encode()}) == []


def test_a_refusal_of_credentials_shows_neither_key() -> None:
    for key_id, text in ((TEXT, "x"), ("has space", TEXT), ("", TEXT), ("new\nline", TEXT), ("k", "")):
        try:
            Credentials(key_id, Secret(text))
        except BadCredentials as error:
            report = "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())
            assert found(report.encode(), {"secret": TEXT.encode()}) == []
        else:
            pytest.fail(f"{key_id!r} was accepted")


def test_reveal_is_the_one_door() -> None:
    assert SECRET.reveal() == TEXT
    assert CREDENTIALS.secret.reveal() == TEXT


def test_equal_secrets_are_equal_and_nothing_else_is() -> None:
    assert Secret(TEXT) == SECRET
    assert Secret(TEXT + "x") != SECRET
    assert SECRET != TEXT
    assert Secret("ü\udc80") == Secret("ü\udc80")
    assert Credentials(KEY_ID, Secret(TEXT)) == CREDENTIALS
    assert Credentials(KEY_ID, Secret("other")) != CREDENTIALS


def test_all_secrets_have_one_hash() -> None:
    assert hash(Secret("a")) == hash(Secret("b"))
    assert len({Secret("a"), Secret("b"), Secret("a")}) == 2


def test_a_secret_cannot_be_changed() -> None:
    secret = Secret("before")
    with pytest.raises(AttributeError):
        secret.reveal = lambda: "after"  # type: ignore[method-assign]
    with pytest.raises(AttributeError):
        del secret.reveal
    assert secret.reveal() == "before"


def test_a_secret_is_a_field_of_settings() -> None:
    settings = Settings(secret=TEXT)  # type: ignore[arg-type]
    assert settings.secret == SECRET
    assert Settings(secret=SECRET).secret is SECRET
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()} {settings.model_copy()!r}"
    assert found(shown.encode(), {"secret": TEXT.encode()}) == []


@pytest.mark.parametrize("values", [{"secret": 7, "threads": TEXT}, {"secret": ""}, {"secret": TEXT, TEXT: 1}, {}])
def test_a_refused_setting_does_not_show_what_was_given(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    if TEXT not in values:  # the name of an unknown field is shown, on purpose
        assert found(str(caught.value).encode(), {"secret": TEXT.encode()}) == []
