"""`windrow status`: where a run stands, by public objects, and what the nodes on this machine do and wait for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurons.doctor.words import duration
from neurons.documents import Documents, Source
from neurons.folder import is_held
from neurons.leaderboard.words import digits8, percent, plain, plural, short
from neurons.onlooker import Onlooker
from neurons.status import STATUS_FILE, NodeStatus, read_status
from protocol.errors import DocumentError
from protocol.ledger.manifest import Manifest, leader_order
from protocol.window import deadlines, window_of
from storage.errors import StorageError

_STALLED_BLOCKS, _EARLY_BLOCKS = 10, 2
"""How many blocks old the newest one may be, and by how many of the future, before it is told."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run as anybody sees it. `window` is the one that the chain is in at `block`; `leader` the uid and hotkey that
    may write the next manifest first, None where no validator has a permit; `newest`, `root` and `signer` are of the
    newest manifest that a validator holds, None while there is none: root is that of θ before it; `lag` counts the
    windows whose manifest was due and is nowhere, and `due_block` is when the next manifest is due. `block_at` is when
    the chain made `block`, in Unix seconds by its own clock, and `block_seconds` how long one should take. `problems`
    has a sentence for each validator whose bucket or manifest is of no use."""

    name: str
    block: int
    block_at: float
    block_seconds: float
    window: int
    leader: tuple[int, str] | None
    newest: int | None
    root: str | None
    signer: str | None
    lag: int
    due_block: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node of this machine: what it said last, whether its process lives, and by how many windows it is behind the
    chain, None where the chain was not asked."""

    status: NodeStatus
    running: bool
    lag: int | None


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it. `run` is None where only a folder of nodes was looked at."""

    run: RunStatus | None
    nodes: tuple[NodeState, ...]

    @property
    def anything_runs(self) -> bool:
        """Whether a node of this machine runs."""
        return any(node.running for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        run = None if self.run is None else asdict(self.run)
        if run is not None and self.run is not None and self.run.leader is not None:
            run["leader"] = dict(zip(("uid", "hotkey"), self.run.leader, strict=True))
        return {"run": run, "nodes": [_node_json(node) for node in self.nodes]}

    def lines(self, now: float, folder: Path | None) -> Iterator[str]:
        """The same for people, at `now` in Unix seconds. `folder` is where nodes were looked for, if they were."""
        if self.run is not None:
            yield from _run_lines(self.run, now)
        if folder is not None and not self.nodes:
            yield f"no node runs here, {folder} holds none: start one with windrow up, miner or validator"
        for node in self.nodes:
            yield from _node_lines(node, now)
        if self.nodes and not self.anything_runs:
            yield "no node runs here now: the lines above are what each said last"


async def look(onlooker: Onlooker) -> RunStatus:
    """Where the run stands. Raises `ChainUnreachable`."""
    run, chain = onlooker.run, onlooker.chain
    head, neurons = await chain.head(), await chain.neurons()
    documents = Documents(run, chain, onlooker.open_bucket)
    sources, problems = await documents.sources(neurons)
    window = window_of(head.number, run.time)
    newest = None
    for source in sources:
        try:
            found = await _newest(documents, source, window)
        except (StorageError, DocumentError) as error:
            problems.append(plain(f"the newest manifest of validator {source.uid} cannot be had: {error}"))
            continue
        if found is not None and (newest is None or found.window > newest.window):
            newest = found
    following = run.time.first_window if newest is None else newest.window + 1
    over_due = window_of(head.number - run.time.manifest_blocks, run.time) - 1
    leader = next(iter(leader_order(neurons)), None)
    return RunStatus(
        name=run.name,
        block=head.number,
        block_at=head.timestamp,
        block_seconds=chain.block_seconds,
        window=window,
        leader=None if leader is None else (leader.uid, leader.hotkey),
        newest=None if newest is None else newest.window,
        root=None if newest is None else newest.root,
        signer=None if newest is None else newest.signer,
        lag=max(0, over_due - following + 1),
        due_block=deadlines(following, run.time).manifest_block,
        problems=tuple(problems),
    )


async def _newest(documents: Documents, source: Source, last: int) -> Manifest | None:
    """The manifest that a validator's bucket says is its newest, up to window `last`."""
    number = await documents.newest_manifest(source)
    return None if number is None or number > last else await documents.manifest(number, source)


def nodes_in(folder: Path, window: int | None = None) -> tuple[NodeState, ...]:
    """The nodes that have their local state in `folder`, or the one whose folder it is, while the chain is in
    `window`."""
    places = [folder] if (folder / STATUS_FILE).exists() else sorted(p.parent for p in folder.glob(f"*/{STATUS_FILE}"))
    return tuple(_nodes(places, window))


def _nodes(places: Iterable[Path], window: int | None) -> Iterator[NodeState]:
    for place in places:
        status = read_status(place)
        if status is not None:
            yield NodeState(status, is_held(place), None if window is None else max(0, window - status.window))


def _node_json(node: NodeState) -> dict[str, Any]:
    status = node.status
    return {
        "name": status.name,
        "role": status.role,
        "uid": status.uid,
        "hotkey": status.hotkey,
        "running": node.running,
        "window": status.window,
        "root": status.roots.get(status.window),
        "lag": node.lag,
        "activity": status.activity,
        "since": status.since,
        "head_window": status.head_window,
        "attesting": status.attesting,
        "final": status.final,
        "leader": status.leader,
        "evidence": status.evidence,
    }


def _run_lines(run: RunStatus, now: float) -> Iterator[str]:
    leader = (
        "nobody: no validator has a permit" if run.leader is None else f"uid {run.leader[0]} {short(run.leader[1])}"
    )
    yield f"run {plain(run.name)}: block {run.block:,}, window {run.window:,}; the leader is {leader}"
    age = now - run.block_at
    if age > _STALLED_BLOCKS * run.block_seconds:
        why = "the chain stands still, or this machine's clock is ahead of it"
        yield f"the newest block is {duration(age)} old: {why}"
    elif age < -_EARLY_BLOCKS * run.block_seconds:
        yield f"the newest block is {duration(-age)} in the future: this machine's clock is behind the chain's"
    due = f"due by block {run.due_block:,}"
    if run.newest is None or run.root is None or run.signer is None:
        yield f"no manifest yet; the first is {due}"
    else:
        root = f"root {digits8(run.root)} before it, signed by {short(run.signer)}"
        yield f"the newest manifest is that of window {run.newest:,}: {root}; the next is {due}"
    if run.lag:
        yield f"the ledger is {plural(run.lag, 'window')} behind the chain"
    yield from run.problems


def _node_lines(node: NodeState, now: float) -> Iterator[str]:
    status = node.status
    root = status.roots.get(status.window)
    at = f"window {status.window:,}, root {digits8(root)}" if root else "no state yet"
    lag = "" if node.lag is None or root is None else f", {plural(node.lag, 'window')} behind the chain"
    lag = ", where the chain is" if node.lag == 0 and root is not None else lag
    said = plain(status.activity) if node.running else f"does not run; its last words: {plain(status.activity)}"
    ago = duration(max(0.0, now - status.since))
    yield f"{plain(status.name)} ({status.role}, uid {status.uid}): {at}{lag}; {said}, for {ago}"
    if status.head_window is not None:
        final = "nothing is final yet" if status.final is None else f"final up to window {status.final:,}"
        leader = f"; the leader is {short(status.leader)}" if status.leader else ""
        share = percent(status.attesting, 0)
        yield f"  follows manifest {status.head_window:,}, for which {share} of the stake stands; {final}{leader}"
    for sentence in status.evidence:
        yield f"  {plain(sentence)}"
