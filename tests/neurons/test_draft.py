from __future__ import annotations

import pytest

from neurons.draft import changed, check_draft, without_digests
from neurons.errors import ConfigError
from protocol.run import preset_table


def test_a_change_takes_the_place_of_what_the_preset_says() -> None:
    table = preset_table("demo")
    made = changed(table, ["inner.steps=7", "model.hidden_size = 64", "name=mine", "sparseloco.average=all"])
    run = check_draft(made)
    assert (run.inner.steps, run.model["hidden_size"], run.name, run.sparseloco.average) == (7, 64, "mine", "all")
    assert table == preset_table("demo")


def test_a_change_may_open_a_new_section_and_hold_any_value_of_toml() -> None:
    made = changed(preset_table("demo"), ["weights.burn_share=0.5", "sparseloco.outer_learning_rate=[[0,1.0],[9,0.5]]"])
    run = check_draft(made)
    assert run.weights.burn_share == 0.5
    assert run.sparseloco.outer_learning_rate == ((0, 1.0), (9, 0.5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("inner.steps", "write section.key=value"),
        ("=3", "write section.key=value"),
        (".steps=3", "write section.key=value"),
        ("name.first=3", "name is a value, not a section"),
        ("inner.stepps=3", r"inner\.stepps: did you mean inner\.steps\?"),
        ("inner.steps=many", "inner.steps: "),
        ("tme.window_blocks=9", "tme: did you mean time"),
        ("zzz=1", "zzz: unknown key, remove it"),
        ("gauntlet.own_pages=1000", "own_pages exceeds"),
    ],
)
def test_a_change_that_cannot_be_is_named(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_draft(changed(preset_table("demo"), [change]))


def test_a_draft_names_neither_dataset_nor_genesis() -> None:
    table = {"name": "x", "genesis_root": "ab", "dataset": {"slots": 3, "index_digest": "cd"}}
    assert without_digests(table) == {"name": "x", "dataset": {"slots": 3}}
    assert without_digests({"dataset": 3}) == {"dataset": 3}
