"""min_compute.yml says what the presets and the code say today."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import min_compute
from benchmarks.cases import run_of
from protocol.run import PRESETS

FILE = Path(__file__).parents[1] / "min_compute.yml"


def test_the_file_is_what_the_presets_give_today() -> None:
    assert FILE.read_text() == min_compute.document(), "run: python -m benchmarks.min_compute > min_compute.yml"


def test_every_preset_is_in_it_for_both_roles() -> None:
    specification = yaml.safe_load(FILE.read_text())["compute_spec"]
    assert {role: tuple(presets) for role, presets in specification.items()} == {
        "miner": PRESETS,
        "validator": PRESETS,
    }


def test_what_is_computed_for_a_miner_of_the_demo_is_near_what_was_measured() -> None:
    """The one size at which arithmetic and measurement meet; the measured one has the probe of the dtype on top."""
    computed = min_compute.miner(run_of("demo"))["memory_gib"]
    assert computed == pytest.approx(min_compute.MEASURED["demo_miner_memory_gib"], rel=0.25)


@pytest.mark.parametrize(("value", "rounded"), [(0.1234, 0.13), (0.5, 0.5), (99.1, 100), (1234, 1300), (30, 30)])
def test_numbers_are_rounded_up_to_two_digits(value: float, rounded: float) -> None:
    assert min_compute._up(value) == rounded
