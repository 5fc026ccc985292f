"""What a running neuron tells the machine it runs on: one small JSON file, replaced whole.

The live screen of `windrow up` reads it. Nothing that decides money or state does.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

STATUS_FILE = "status.json"


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One neuron now. `since` is in Unix seconds; `roots` maps the latest windows to the root of θ before them;
    `loss` is the latest training loss of a miner in nats."""

    name: str
    role: str
    uid: int
    hotkey: str
    pid: int
    window: int
    activity: str
    since: float
    roots: dict[int, str] = field(default_factory=dict)
    loss: float | None = None


def write_status(folder: Path, status: NodeStatus) -> None:
    """Replace the status file in `folder`, which must exist and belong to this process. Raises `OSError`."""
    partial = folder / f"~{STATUS_FILE}"
    partial.write_text(json.dumps(asdict(status)))
    partial.replace(folder / STATUS_FILE)


def read_status(folder: Path) -> NodeStatus | None:
    """The status in `folder`; None while the neuron has not written any, or something else lies there."""
    try:
        fields = json.loads((folder / STATUS_FILE).read_text())
        return NodeStatus(**{**fields, "roots": {int(window): root for window, root in fields["roots"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def read_statuses(nodes: Path) -> list[NodeStatus]:
    """What every neuron that ever ran on this machine said last, by name. `nodes` holds a folder for each."""
    folders = sorted(path.parent for path in nodes.glob(f"*/{STATUS_FILE}"))
    return [status for folder in folders if (status := read_status(folder))]
