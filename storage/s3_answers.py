"""Reading the XML that S3 servers answer with. The server may be a stranger's: no entities, no depth, no surprises.

All answers that matter have one shape: a root, plain fields in it, and records that have plain fields themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote
from xml.parsers.expat import ExpatError, ParserCreate

from storage.bucket import ObjectInfo, check_key
from storage.errors import BadKey, Unavailable

_DEEPEST = 16
_LONGEST_NUMBER = 18


@dataclass(frozen=True, slots=True)
class S3Answer:
    """`root` without its name space, its plain fields, and the records asked for, each by field name."""

    root: str
    fields: dict[str, str]
    records: list[dict[str, str]]


def parse(data: bytes, record: str = "") -> S3Answer:
    """Read an answer whose records are elements named `record`. Raises `Unavailable` when it is not such XML."""
    reader = _Reader(record)
    # A name space given with a separator would be glued to each name; without one, the prefix stays: neither is used.
    parser = ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reader.doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(data, True)
    except ExpatError as error:
        raise Unavailable("the store's answer is not XML") from error
    return S3Answer(reader.root, reader.fields, reader.records)


class _Reader:
    def __init__(self, record: str) -> None:
        self.root = ""
        self.fields: dict[str, str] = {}
        self.records: list[dict[str, str]] = []
        self._record = record
        self._path: list[str] = []
        self._text: list[str] = []

    def doctype(self, *_: object) -> None:
        raise Unavailable("the store's answer declares a document type: S3 answers have none")

    def start(self, name: str, _: object) -> None:
        self._path.append(name)
        self._text.clear()
        if len(self._path) > _DEEPEST:
            raise Unavailable("the store's answer is nested too deeply")
        if len(self._path) == 1:
            self.root = name
        elif len(self._path) == 2 and name == self._record:
            self.records.append({})

    def text(self, data: str) -> None:
        self._text.append(data)

    def end(self, name: str) -> None:
        if len(self._path) == 2:
            self.fields[name] = "".join(self._text)
        elif len(self._path) == 3 and self._path[1] == self._record:
            self.records[-1][name] = "".join(self._text)
        self._path.pop()
        self._text.clear()


def objects_of(answer: S3Answer, folder: str) -> Iterator[ObjectInfo]:
    """The objects of a page of a list, without `folder` in front of their keys. What no key of ours can be is left
    out: there may be anything in another's bucket. Raises `Unavailable` when sizes or times are not."""
    for record in answer.records:
        key = unquote(record.get("Key", ""))
        if not key.startswith(folder):
            continue
        key = key[len(folder) :]
        try:
            check_key(key)
        except BadKey:
            continue
        yield ObjectInfo(key, number_in(record, "Size"), float(int(time_in(record, "LastModified"))))


def number_in(record: dict[str, str], name: str) -> int:
    """A count in decimal digits."""
    text = record.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER):
        raise Unavailable(f"the store's answer has no number {name}")
    return int(text)


def time_in(record: dict[str, str], name: str) -> float:
    """A time in Unix seconds."""
    try:
        return datetime.fromisoformat(record.get(name, "")).timestamp()
    except (ValueError, OverflowError) as error:
        raise Unavailable(f"the store's answer has no time {name}") from error
