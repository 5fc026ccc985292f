"""Steps side by side end together, whichever of them ends first."""

from __future__ import annotations

import asyncio

import pytest

from storage.together import until_one_ends


@pytest.mark.parametrize("fails", [False, True])
def test_when_one_step_ends_the_others_have_ended_too(fails: bool) -> None:
    ended: list[str] = []

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("the other")

    async def first() -> None:
        await asyncio.sleep(0)
        ended.append("first")
        if fails:
            raise ValueError("it broke")

    if fails:
        with pytest.raises(ValueError, match="it broke"):
            asyncio.run(until_one_ends((for_ever(), first())))
    else:
        asyncio.run(until_one_ends((for_ever(), first())))
    assert ended == ["first", "the other"]
