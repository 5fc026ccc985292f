"""`windrow`: thin commands. Each collects its options, calls one function, and prints."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from neurons.errors import EXPECTED_ERRORS, exit_code
from neurons.flags import with_settings, with_viewpoint
from neurons.folder import CHEATS, USUAL_CHEATS, Storage, require_network

if TYPE_CHECKING:  # commands import what they need, so that `windrow --help` does not wait for torch
    from neurons.leaderboard.view import View
    from neurons.node import Node
    from neurons.onlooker import Onlooker
    from protocol.run import Run

EXIT_INTERRUPTED = 130

Read = TypeVar("Read")

app = typer.Typer(
    name="windrow",
    help="Train large language models with strangers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cheats = typer.Typer(no_args_is_help=True)
runs = typer.Typer(no_args_is_help=True)
app.add_typer(runs, name="run", help="Make, show and publish the constants of a run.")
app.add_typer(cheats, name="cheat", help="Run a miner that cheats, to see it fail.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Expected errors become one sentence on stderr."""
    try:
        app(list(sys.argv[1:] if arguments is None else arguments), prog_name="windrow")
    except EXPECTED_ERRORS as error:
        print(f"windrow: {error}", file=sys.stderr)
        return exit_code(error)
    except SystemExit as ending:  # typer ends every command this way, usage errors with 2
        return ending.code if isinstance(ending.code, int) else 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


# --- neurons ----------------------------------------------------------------------------------------------


def _add_neuron(group: typer.Typer, name: str, load: Callable[[], type[Node]], text: str) -> None:
    """Add the command that runs one kind of neuron. All kinds have the same options."""

    @with_settings
    def run(flags: dict[str, object], config: Path | None) -> None:
        from neurons.process import run_neuron
        from neurons.settings import load_settings

        run_neuron(load(), load_settings(flags, os.environ, config))

    group.command(name, help=text)(run)


def _miner() -> type[Node]:
    from neurons.miner import Miner

    return Miner


def _validator() -> type[Node]:
    from neurons.validator import Validator

    return Validator


def _cheat(kind: str) -> type[Node]:
    from neurons.adversaries import adversary

    return adversary(kind)


_add_neuron(app, "miner", _miner, "Run a miner: train, compress, seal, reveal.")
_add_neuron(app, "validator", _validator, "Run a validator: collect, agree, judge, pay.")
for kind, what in CHEATS.items():
    _add_neuron(cheats, kind, partial(_cheat, kind), what)


@app.command("doctor")
@with_settings
def doctor(
    flags: dict[str, object],
    config: Path | None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Whether a node could take part with these settings, from this machine: every check, and what to do."""
    from neurons.doctor.report import run_doctor
    from neurons.settings import read_settings

    console = Console(stderr=as_json)
    with console.status("looking") as status:
        diagnosis = run_doctor(
            read_settings(flags, os.environ, config), lambda name: status.update(f"looking at {name}")
        )
    if as_json:
        print(json.dumps(diagnosis.to_json()))
    else:
        console.print(diagnosis.table())
    raise typer.Exit(diagnosis.exit_code)


# --- runs ---------------------------------------------------------------------------------------------------

_AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@runs.command("new")
def new_run(
    name: Annotated[str, typer.Argument(help="What the run is called: a-z 0-9 -.")],
    preset: Annotated[str, typer.Option(help="What to start from: a preset or a TOML file of constants.")] = "150m",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, in place of the preset's.", show_default=False)
    ] = None,
    from_block: Annotated[
        int | None, typer.Option(min=0, help="Begin with the first window at or after this block.", show_default="0")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="NAME.toml")] = None,
    as_json: _AsJson = False,
) -> None:
    """Make the constants of a new run, and show what they mean."""
    from neurons.run_commands import new

    path = out or Path(f"{name}.toml")
    run = new(path, name, preset, changes or [], from_block)
    Console(stderr=True).print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    _show(run, as_json)


@runs.command("show")
def show_run(
    source: Annotated[str, typer.Argument(help="A preset, a TOML file of constants, or where a run is published.")],
    as_json: _AsJson = False,
) -> None:
    """What a run is, and what it asks of a machine."""
    from neurons.run_commands import find

    _show(asyncio.run(find(source)), as_json)


@runs.command("publish")
def publish_run(
    file: Annotated[Path, typer.Argument(help="The constants, as `windrow run new` wrote them.")],
    bucket: Annotated[str, typer.Option(help="Where to: s3://…, r2://…, https://…, or a folder.")],
    public_url: Annotated[
        str | None, typer.Option(help="https URL under which anybody reads that bucket.", show_default="none")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Folder of text to train on.", show_default="the standard library")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset that exists, by folder or URL, instead of text.", show_default="none")
    ] = None,
    network: Annotated[str | None, typer.Option("--subtensor.network", help="Chain that the run goes on.")] = None,
    netuid: Annotated[int | None, typer.Option(min=1, help="Subnet that the run goes on.")] = None,
    aws_profile: Annotated[str | None, typer.Option(help="AWS profile with the key that writes.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Publish a run: its dataset, its first state, and run.toml. Again after an interruption, it adds the rest."""
    from neurons.publishing import Order
    from neurons.run_commands import facts, facts_table, publish_run, read_table
    from storage.profiles import profile_from

    console = Console(stderr=as_json)

    def say(what: str) -> None:
        console.print(what, highlight=False, markup=False, soft_wrap=True)

    order = Order(read_table(file), text, dataset, network, netuid)
    genesis, where = asyncio.run(publish_run(say, order, bucket, public_url, profile_from(os.environ, aws_profile)))
    if as_json:
        print(json.dumps(facts(genesis.run) | {"run": where}))
        return
    console.print(facts_table(facts(genesis.run)))
    say(f"\npublished; a node takes part with: --run {where}")


def _show(run: Run, as_json: bool) -> None:
    from neurons.run_commands import facts, facts_table

    if as_json:
        print(json.dumps(facts(run)))
    else:
        Console().print(facts_table(facts(run)))


# --- a network on this machine ----------------------------------------------------------------------------

Dir = Annotated[Path, typer.Option("--dir", help="Folder of a network on this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
_DEFAULT_DIR = Path("windrow-network")
_LAB_FILE = Path("windrow-lab.jsonl")


@app.command()
def up(
    folder: Dir = _DEFAULT_DIR,
    miners: Annotated[int | None, typer.Option(min=0, help="Honest miners of a new network.", show_default="4")] = None,
    validators: Annotated[
        int | None, typer.Option(min=1, help="Validators of a new network.", show_default="1")
    ] = None,
    cheats: Annotated[
        str | None, typer.Option(help="Cheats of a new network.", show_default=",".join(USUAL_CHEATS))
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="End after so many more windows.", show_default="never")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Folder of text to train on.", show_default="the standard library")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Constants of a new run: a preset or a TOML file.", show_default="demo")
    ] = None,
    block_seconds: Annotated[
        float | None, typer.Option(min=0.05, help="Block time of a new network.", show_default="1")
    ] = None,
    storage: Annotated[
        Storage | None,
        typer.Option(help="Buckets of a new network: folders, or an S3 server (radosgw).", show_default="directory"),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live screen.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")] = False,
) -> None:
    """Run a whole network on this machine, or resume the one in the folder."""
    from neurons.founding import Wishes
    from neurons.localnet import up as run_up

    console = Console(stderr=as_json)
    kinds = None if cheats is None else tuple(kind.strip() for kind in cheats.split(",") if kind.strip())
    wishes = Wishes(miners, validators, kinds, preset, block_seconds, text, storage)
    outcome = run_up(folder.absolute(), wishes, windows, console, plain or not console.is_terminal)
    if as_json:
        print(json.dumps(outcome.table))
    if outcome.failure is not None:
        raise outcome.failure
    if outcome.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


@app.command("leaderboard")
@with_viewpoint
def leaderboard(flags: dict[str, object], as_json: Json = False) -> None:
    """Who earns what, from the buckets and the chain alone."""
    from neurons.leaderboard.terminal import leaderboard_table
    from neurons.leaderboard.view import Watcher
    from neurons.localnet import names

    async def read(look: Onlooker) -> View:
        return await Watcher(look.run, look.chain, look.open_bucket).refresh()

    view, folder = _look(flags, read)
    if as_json:
        print(json.dumps(view.to_json()))
    else:
        called = names(folder, require_network(folder)) if folder else {}
        Console().print(leaderboard_table(view, called))


@app.command("status")
@with_viewpoint
def status(
    flags: dict[str, object],
    state: Annotated[
        Path | None, typer.Option("--state", help="Local state of nodes, or of one.", show_default="DIR/nodes")
    ] = None,
    as_json: Json = False,
) -> None:
    """Where a run stands, and what the nodes on this machine do and wait for."""
    import time

    from neurons.folder import Places
    from neurons.overview import Overview, look, nodes_in

    run, nodes = None, state
    if state is None or any(value is not None for value in flags.values()):
        run, folder = _look(flags, look)
        nodes = Places(folder).nodes if folder is not None and state is None else state
    found = () if nodes is None else nodes_in(nodes.expanduser(), None if run is None else run.window)
    overview = Overview(run, found)
    if as_json:
        print(json.dumps(overview.to_json()))
    else:
        for line in overview.lines(time.time(), nodes):
            Console().print(line, highlight=False, markup=False, soft_wrap=True)


@app.command("explain")
@with_viewpoint
def explain(
    flags: dict[str, object],
    uid: Annotated[int, typer.Argument(min=0, help="Slot of the peer.")],
    window: Annotated[int | None, typer.Argument(min=0, help="Window; the newest judged one if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Why a peer got its score in a window, and what would have changed it: from public objects alone."""
    from neurons.explain.explanation import explain as explain_evidence
    from neurons.explain.gathering import gather

    evidence, _ = _look(flags, lambda look: gather(look, uid, window))
    explanation = explain_evidence(evidence)
    if as_json:
        print(json.dumps(explanation.to_json()))
    else:
        Console().print(explanation)


@app.command("audit")
@with_viewpoint
def audit(
    flags: dict[str, object],
    first: Annotated[
        int | None, typer.Option("--from", min=0, help="First window.", show_default="first of the run")
    ] = None,
    last: Annotated[int | None, typer.Option("--to", min=0, help="Last window.", show_default="the newest")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Recompute receipts too: losses, gains, ratings.")] = False,
    as_json: Json = False,
) -> None:
    """Whether the ledger follows from itself and the receipts from the payloads: recomputed, with read access only."""
    import tempfile

    from neurons.audit.walk import audit as walk

    console = Console(stderr=True)
    with console.status("looking") as status, tempfile.TemporaryDirectory(prefix="windrow-audit-") as spool:
        report, _ = _look(flags, lambda look: walk(look, first, last, scores, Path(spool), status.update))
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        Console().print(report)
    raise typer.Exit(report.exit_code)


@app.command()
def lab(
    attacks: Annotated[list[str] | None, typer.Argument(help="Which attacks.", show_default="all")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few attacks, miners and windows: what CI runs.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How often to play each, with other pages and weights.")] = 1,
    miners: Annotated[
        int | None, typer.Option(min=3, help="Miners, the attackers among them.", show_default="12, quick: 4")
    ] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Windows.", show_default="40, quick: 8")] = None,
    mix: Annotated[
        str | None, typer.Option(help="Play mixtures of cheats too: their shares among the miners, like 0.1,0.4.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Scenarios at a time, a core each.", show_default="all cores")
    ] = None,
    out: Annotated[Path, typer.Option(help="Results so far; what is in it is not played again.")] = _LAB_FILE,
    as_json: Json = False,
) -> None:
    """What cheating pays and breaks: whole networks in virtual time, with and without attackers."""
    import logging
    from dataclasses import asdict

    from neurons.lab.report import lab as run_lab
    from neurons.lab.report import plan, shares_of, table_of
    from neurons.lab.scenario import Setting

    logging.basicConfig(level=logging.CRITICAL)  # attackers are told what became of them in every window
    setting = Setting(miners or (4 if quick else 12), windows or (8 if quick else 40), quick)
    plans = plan(attacks or (), shares_of(mix or ""), setting, seeds)
    rows = run_lab(plans, setting, jobs or os.cpu_count() or 1, out, Console(stderr=True))
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        Console().print(table_of(rows))


def _look(flags: dict[str, object], read: Callable[[Onlooker], Awaitable[Read]]) -> tuple[Read, Path | None]:
    """What `read` finds where the flags say, and the folder of the network if it is on this machine."""
    from neurons.onlooker import onlooker
    from neurons.settings import load_viewpoint

    view = load_viewpoint(flags, os.environ, _DEFAULT_DIR)

    async def run() -> Read:
        async with onlooker(view) as look:
            return await read(look)

    return asyncio.run(run()), view.folder


if __name__ == "__main__":
    sys.exit(main())
