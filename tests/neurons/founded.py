"""A network that is founded in the test's own process."""

from __future__ import annotations

from pathlib import Path

from neurons import founding
from neurons.folder import under_construction
from neurons.founding import Plan


def found_network(folder: Path, plan: Plan) -> list[str]:
    """Found the network of `plan` in `folder`, which is made; returns what was said."""
    said: list[str] = []
    folder.mkdir()
    with under_construction(folder):
        digest = founding.write_text(said.append, folder, plan)
        founding.write_rest(said.append, folder, plan, digest)
    return said
