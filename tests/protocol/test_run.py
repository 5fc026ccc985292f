"""run.toml: what is refused, and what the digest depends on."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from protocol.errors import RunError
from protocol.run import PRESETS, Run, parse_run, preset_table, run_from_table

Table = Callable[..., dict[str, Any]]


def test_defaults_are_part_of_the_digest_whether_they_are_written_or_not(make_run: Callable[..., Run]) -> None:
    assert make_run().digest() == make_run(sparseloco__k=64, time__reveal_blocks=4, weights__rule="tiers").digest()


def test_a_copy_with_other_constants_has_a_digest_of_its_own(run: Run) -> None:
    before = run.digest(), run.digest_bytes
    copied = run.model_copy(update={"name": "other"})
    assert copied.digest() == Run.parse(copied.canonical()).digest() != before[0]
    assert copied.digest_bytes.hex() == copied.digest()
    assert (run.digest(), run.digest_bytes) == before


def test_every_constant_changes_the_digest(make_run: Callable[..., Run], run: Run) -> None:
    changes: list[dict[str, Any]] = [
        {"name": "tiny-2"},
        {"genesis_root": "01" + "00" * 31},
        {"model__hidden_size": 16},
        {"model__hidden_size": 8.0},
        {"sparseloco__k": 65},
        {"penalties__missing": 0.76},
        {"sparseloco__outer_learning_rate": [[0, 1.0], [5, 0.5]]},
        {"checkpoints__keep": 4},
    ]
    digests = {run.digest(), *(make_run(**change).digest() for change in changes)}
    assert len(digests) == 1 + len(changes)


def test_a_run_survives_its_canonical_form(run: Run) -> None:
    assert Run.parse(run.canonical()) == run
    assert Run.parse(run.canonical()).digest() == run.digest()


def test_a_run_cannot_be_changed(run: Run) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        run.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"colour": 1}, "colour: unknown key"),
        ({"time__minutes": 1}, "time.minutes: unknown key"),
        ({"version": 2}, "version"),
        ({"name": "Tiny"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"genesis_root": "00"}, "genesis_root"),
        ({"genesis_root": "AA" * 32}, "genesis_root"),
        ({"genesis_root": "00" * 32 + "\n"}, "genesis_root"),
        ({"time__window_blocks": 9}, "manifest_blocks + failover_blocks < window_blocks"),
        ({"time__reveal_blocks": 2}, "seal_blocks + 1 < reveal_blocks"),
        ({"time__reveal_blocks": 7}, "reveal_blocks <= manifest_blocks"),
        ({"time__window_blocks": 10.0}, "time.window_blocks"),
        ({"time__window_blocks": True}, "time.window_blocks"),
        ({"time__window_blocks": "10"}, "time.window_blocks"),
        ({"time__first_window": -1}, "time.first_window"),
        ({"dataset__slots": 65537}, "dataset.slots"),
        ({"dataset__slots": 0}, "dataset.slots"),
        ({"inner__learning_rate": 0.0}, "inner.learning_rate"),
        ({"inner__learning_rate": float("nan")}, "inner.learning_rate"),
        ({"inner__learning_rate": float("inf")}, "inner.learning_rate"),
        ({"inner__optimizer": "sgd"}, "inner.optimizer"),
        ({"inner__beta1": 1.0}, "inner.beta1"),
        ({"inner__beta2": 1.0}, "inner.beta2"),
        ({"sparseloco__k": 0}, "sparseloco.k"),
        ({"sparseloco__k": 4097}, "sparseloco.k"),
        ({"sparseloco__value_bits": 3}, "sparseloco.value_bits"),
        ({"sparseloco__error_feedback": 1.01}, "sparseloco.error_feedback"),
        ({"sparseloco__average": "mean"}, "sparseloco.average"),
        ({"sparseloco__outer_learning_rate": []}, "must start at window 0"),
        ({"sparseloco__outer_learning_rate": [[1, 1.0]]}, "must start at window 0"),
        ({"sparseloco__outer_learning_rate": [[0, 1.0], [0, 0.5]]}, "ascend"),
        ({"sparseloco__outer_learning_rate": [[0, 0.0]]}, "outer_learning_rate"),
        ({"gauntlet__own_pages": 7}, "gauntlet.own_pages exceeds"),
        ({"gauntlet__own_pages": 1}, "gauntlet.own_pages"),
        ({"gauntlet__random_pages_most": 2}, "gauntlet: Value error, random_pages_most must be at least random_pages"),
        ({"sparseloco__k": 4096}, "overlap_limit"),
        ({"sparseloco__k": 1024, "gauntlet__overlap_limit": 0.25}, "overlap_limit"),
        ({"penalties__rejected": -0.1}, "penalties.rejected"),
        ({"weights__best_to_worst": 0.5}, "weights.best_to_worst"),
        ({"weights__burn_share": 1.5}, "weights.burn_share"),
        ({"checkpoints__keep": 1}, "checkpoints.keep"),
        ({"model": {}}, "model_type is missing"),
        ({"model__rope": {"deep": {"deeper": 1}}}, "model.rope"),
        ({"model__layers": [1, 2]}, "model.layers"),
        ({"model__dropout": float("nan")}, "model.dropout"),
    ],
)
def test_an_impossible_constant_is_named(table: Table, change: dict[str, Any], key: str) -> None:
    with pytest.raises(RunError) as caught:
        run_from_table(table(**change))
    assert key in str(caught.value)


def test_all_wrong_keys_are_named_at_once(table: Table) -> None:
    with pytest.raises(RunError, match=r"time\.window_blocks.*sparseloco\.k"):
        run_from_table(table(time__window_blocks=0, sparseloco__k=0))


@pytest.mark.parametrize(
    "text",
    ["time = [", "\x00", "name = 1\nname = 2", "a=" + "[" * 10_000, "a=" + "9" * 5_000],
    ids=["open bracket", "control character", "key twice", "deep nesting", "too many digits"],
)
def test_what_is_not_toml_is_said_to_be_none(text: str) -> None:
    with pytest.raises(RunError, match="is not TOML"):
        parse_run(text)


def test_a_date_where_a_number_belongs_is_refused(table: Table) -> None:
    with pytest.raises(RunError, match=r"inner\.steps"):
        run_from_table(table(inner__steps=datetime.date(2026, 1, 1)))


def test_run_toml_and_the_table_agree(run: Run) -> None:
    text = """
    name = "tiny"
    genesis_root = "0000000000000000000000000000000000000000000000000000000000000000"
    time.window_blocks = 10
    model = { model_type = "llama", hidden_size = 8 }
    inner = { steps = 3, pages_per_step = 2, learning_rate = 0.003 }
    gauntlet = { random_pages = 3, own_pages = 2, held_out_pages = 1 }
    [dataset]
    index_digest = "1111111111111111111111111111111111111111111111111111111111111111"
    sequence_tokens = 16
    page_sequences = 2
    slots = 4
    """
    assert parse_run(text) == run


def test_an_outer_learning_rate_holds_from_its_window_on(make_run: Callable[..., Run]) -> None:
    scheme = make_run(sparseloco__outer_learning_rate=[[0, 1.0], [10, 0.75], [20, 0.5]]).sparseloco
    assert [scheme.alpha(window) for window in (0, 9, 10, 19, 20, 10**6)] == [1.0, 1.0, 0.75, 0.75, 0.5, 0.5]


def test_page_counts_follow_from_steps_and_slots(run: Run) -> None:
    assert (run.pages_per_window, run.pages_needed) == (6, 4 * 6 + 3)


def test_a_dense_run_is_possible_when_nothing_is_compared(make_run: Callable[..., Run]) -> None:
    assert make_run(sparseloco__k=4096, gauntlet__overlap_limit=1.0).sparseloco.k == 4096


def test_there_are_only_the_named_presets() -> None:
    with pytest.raises(RunError, match="choose one of demo, 150m, 1b, 8b, covenant-72b"):
        preset_table("../../etc/passwd")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_lacks_nothing_but_the_digests(name: str) -> None:
    preset = preset_table(name)
    preset["genesis_root"] = "00" * 32
    preset["dataset"]["index_digest"] = "00" * 32
    assert run_from_table(preset).name
