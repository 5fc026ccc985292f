"""The benchmark of joining measures what it says: its quick form runs, and its joiner comes to the right root."""

from __future__ import annotations

from benchmarks.join import measure


def test_a_joiner_is_measured_against_reading_the_same_bytes() -> None:
    said: list[str] = []
    result = measure(True, 3, 1, said.append)
    assert result["windows"] == 3
    assert result["payloads"] == 12
    assert result["bytes"] > result["checkpoint_bytes"] > 0
    for name in ("line", "folders"):
        assert 0 <= result[name]["extra_bytes"] < result["bytes"]
        assert min(result[name]["ratio"]) > 0
    assert "line: turn 1 of 1" in said
