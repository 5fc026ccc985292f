"""How numbers and names are written on every screen, so that the same value looks the same everywhere."""

from __future__ import annotations

_WIDE = 100_000.0


def number(value: float, digits: int = 2) -> str:
    """`value` with a true minus sign. What another validator signed can be any float, so a huge one is written in
    scientific form and cannot break a column."""
    text = f"{value:.{digits}f}" if abs(value) < _WIDE else f"{value:.1e}"
    if not text.strip("-0."):
        text = text.removeprefix("-")
    return text.replace("-", "−")


def percent(value: float, digits: int = 1, *, signed: bool = False) -> str:
    """A share as a percentage; `signed` puts a plus before what is above zero."""
    text = number(100.0 * value, digits)
    return f"+{text} %" if signed and not text.startswith("−") and text.strip("0.") else f"{text} %"


def short(address: str) -> str:
    """An ss58 address or a digest, cut in the middle or at the end to what an eye compares."""
    return address if len(address) <= 12 else f"{address[:6]}…{address[-4:]}"


def digits8(digest: str) -> str:
    """The first eight hexadecimal digits of a digest."""
    return digest[:8]


def plain(text: str) -> str:
    """`text` without anything a terminal could obey: every control or invisible character becomes `?`."""
    return "".join(character if character.isprintable() else "?" for character in text)


def plural(count: int, noun: str) -> str:
    """`1 window`, `2 windows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
