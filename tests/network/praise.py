"""A validator that thinks well of some members from the start: what takes windows otherwise."""

from __future__ import annotations

from typing import Any

from protocol.gauntlet.scorebook import PeerRecord


def praise(net: Any, ratings: dict[str, float]) -> None:
    """Let the validator think well of these members, as if they had worked for long."""
    validator = net.nodes["v"]
    peers = [
        PeerRecord(
            uid=net.nodes[name].uid,
            hotkey=net.nodes[name].hotkey,
            mu=rating,
            sigma=0.5,
            unique_work=0.9,
            unique_work_error=0.001,
            judged=50,
            signs=(1,) * 8,
        )
        for name, rating in ratings.items()
    ]
    book = validator.memory.book.model_copy(update={"peers": tuple(peers)})
    validator.memory = validator.memory.model_copy(update={"book": book})
