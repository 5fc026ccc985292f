"""Constants of a run that is not made yet: a preset or a TOML file, and what is changed in it.

A draft has everything of run.toml but `genesis_root` and `dataset.index_digest`, which only the model and the text
can tell.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurons.errors import ConfigError
from protocol.errors import RunError
from protocol.identity import Document
from protocol.run import PRESETS, Run, preset_table, run_from_table

UNKNOWN = "0" * 64
"""Stands for a digest that is not known before the dataset and the model are made."""


def read_constants(preset: str) -> tuple[dict[str, Any], Run]:
    """The table of a preset or of a TOML file, and the run it will make; `ConfigError` when it is neither."""
    if preset in PRESETS:
        table = preset_table(preset)
        return table, draft_of(table)
    try:
        table = tomllib.loads(Path(preset).read_text())
        return table, draft_of(table)
    except (OSError, ValueError) as error:
        names = ", ".join(PRESETS)
        raise ConfigError(f"{preset!r} is neither a preset ({names}) nor a TOML file of constants: {error}") from error
    except RunError as error:
        raise ConfigError(f"{preset}: {str(error).removeprefix('run.toml: ')}") from error


def draft_of(table: dict[str, Any]) -> Run:
    """The run of `table`, with `UNKNOWN` for both digests; raises `RunError`."""
    return run_from_table({**with_dataset(table, UNKNOWN), "genesis_root": UNKNOWN})


def with_dataset(table: dict[str, Any], digest: str) -> dict[str, Any]:
    """`table` on the dataset with this digest."""
    dataset = table.get("dataset")
    return {**table, "dataset": {**(dataset if isinstance(dataset, dict) else {}), "index_digest": digest}}


def without_digests(table: dict[str, Any]) -> dict[str, Any]:
    """`table` as a draft: what names one dataset and one genesis is left out."""
    kept = {key: value for key, value in table.items() if key != "genesis_root"}
    if isinstance(dataset := kept.get("dataset"), dict):
        kept["dataset"] = {key: value for key, value in dataset.items() if key != "index_digest"}
    return kept


def changed(table: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of `table` with `changes`, each written as `section.key=value` with a TOML value; a value that is no TOML
    is a text, so that names need no quotes. Raises `ConfigError` for what is not such a change."""
    table = copy.deepcopy(table)
    for change in changes:
        path, equals, text = change.partition("=")
        *sections, key = path.strip().split(".")
        if not equals or not key or not all(sections):
            raise ConfigError(f"{change!r} changes nothing: write section.key=value, e.g. time.window_blocks=60")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{change!r}: {section} is a value, not a section")
        place[key] = _value(text.strip())
    return table


def check_draft(table: dict[str, Any]) -> Run:
    """The run of a draft; `ConfigError` with each wrong field, and the nearest name for one that does not exist."""
    try:
        return draft_of(table)
    except RunError as error:
        sentence = str(error).removeprefix("run.toml: ")
        for path in _unknown(sentence):
            near = difflib.get_close_matches(path, _paths(), n=1)
            if near:
                sentence = sentence.replace(f"{path}: unknown key, remove it", f"{path}: did you mean {near[0]}?")
        raise ConfigError(sentence) from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _unknown(sentence: str) -> list[str]:
    return [part.partition(": ")[0] for part in sentence.split("; ") if part.endswith(": unknown key, remove it")]


def _paths() -> list[str]:
    """Every key of run.toml, in full."""
    sections = {n: f.annotation for n, f in Run.model_fields.items() if isinstance(f.annotation, type)}
    keys = [f"{n}.{key}" for n, kind in sections.items() if issubclass(kind, Document) for key in kind.model_fields]
    return [*Run.model_fields, *keys]
