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
    `loss` is the latest training loss of a miner in nats.

    Of the ledger: `final` is the window of the newest manifest that can no longer change, None before there is one;
    `head_window` that of the newest one that this neuron follows, and `attesting` the share of all stake that stands
    for it, in [0, 1]; `leader` is the hotkey that may write the manifest of the window that the chain is in first;
    `evidence` has a sentence for each validator that has signed what contradicts itself."""

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
    final: int | None = None
    head_window: int | None = None
    attesting: float = 0.0
    leader: str | None = None
    evidence: list[str] = field(default_factory=list)


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
