"""`windrow`: thin commands. Each collects its options, calls one function, and prints."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from neurons.errors import ConfigError, NeuronError
from protocol.errors import ChainError, ProtocolError
from storage.errors import StorageError

EXPECTED_ERRORS = (NeuronError, ProtocolError, StorageError)
"""What ends a command with one sentence instead of a traceback."""

EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="windrow",
    help="Train large language models with strangers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Dir = Annotated[Path, typer.Option("--dir", help="Folder of a network on this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Expected errors become one sentence on stderr."""
    try:
        app(list(sys.argv[1:] if arguments is None else arguments))
    except EXPECTED_ERRORS as error:
        print(f"windrow: {error}", file=sys.stderr)
        return exit_code(error)
    except SystemExit as ending:  # typer ends every command this way, usage errors with 2
        return ending.code if isinstance(ending.code, int) else 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def exit_code(error: Exception) -> int:
    """The documented exit code of an expected error (docs/operations.md)."""
    if isinstance(error, NeuronError):
        return error.exit_code
    if isinstance(error, ChainError):
        return 6
    return 2 if isinstance(error, ProtocolError) else 9


# --- neurons ----------------------------------------------------------------------------------------------

_OPTIONS: dict[str, tuple[Any, str, str]] = {
    "dir": (Path, "--dir", "Folder of a network on this machine; the paths that are not given lie in it."),
    "run": (Path, "--run", "run.toml of the run."),
    "dataset": (Path, "--dataset", "Folder of the run's dataset."),
    "buckets": (Path, "--buckets", "Folder of the buckets of the built-in chain."),
    "state": (Path, "--state", "Folder for local state and status."),
    "wallet_name": (str, "--wallet.name", "Name of the wallet."),
    "wallet_hotkey": (str, "--wallet.hotkey", "Name of its hotkey."),
    "wallet_path": (Path, "--wallet.path", "Folder of wallets."),
    "netuid": (int, "--netuid", "Subnet."),
    "subtensor_network": (str, "--subtensor.network", "Chain; 'local' is the built-in one."),
    "subtensor_chain_endpoint": (str, "--subtensor.chain_endpoint", "Where the chain is: sqlite:PATH."),
    "threads": (int, "--threads", "Threads torch may use."),
    "dtype": (str, "--dtype", "auto, bf16 or fp32."),
    "register_hotkey": (bool, "--register", "Register the hotkey on the subnet if it is not."),
}


def _neuron_options() -> list[inspect.Parameter]:
    parameters = []
    for name, (kind, flag, text) in _OPTIONS.items():
        option = typer.Option(flag, help=text, show_default=False)
        annotation = Annotated[kind | None, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    config = Annotated[Path | None, typer.Option("--config", help="TOML file of these settings.", show_default=False)]
    parameters.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config))
    return parameters


def _neuron(kind: str, config: Path | None, flags: dict[str, Any]) -> None:
    from neurons.adversaries import adversary
    from neurons.miner import Miner
    from neurons.process import run_neuron
    from neurons.settings import load_settings
    from neurons.validator import Validator

    classes = {"miner": Miner, "validator": Validator}
    neuron = classes.get(kind) or adversary(kind)
    run_neuron(neuron, load_settings(flags, os.environ, config))


def _add_neuron(kind: str, text: str) -> None:
    def command(*, config: Path | None = None, **flags: Any) -> None:
        _neuron(kind, config, flags)

    command.__doc__ = text
    command.__signature__ = inspect.Signature(_neuron_options())  # type: ignore[attr-defined]
    app.command(kind)(command)


def _add_cheat() -> None:
    def command(kind: str, *, config: Path | None = None, **flags: Any) -> None:
        _neuron(kind, config, flags)

    which = Annotated[str, typer.Argument(help="copycat or freerider")]
    first = inspect.Parameter("kind", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=which)
    command.__doc__ = "Run a miner that cheats, to see it fail."
    command.__signature__ = inspect.Signature([first, *_neuron_options()])  # type: ignore[attr-defined]
    app.command("cheat")(command)


_add_neuron("miner", "Run a miner: train, compress, seal, reveal.")
_add_neuron("validator", "Run a validator: collect, agree, judge, pay.")
_add_cheat()


# --- a network on this machine ----------------------------------------------------------------------------


@app.command()
def up(
    folder: Dir = Path("windrow-network"),
    miners: Annotated[int, typer.Option(min=0, help="Honest miners of a new network.")] = 4,
    validators: Annotated[int, typer.Option(min=1, help="Validators of a new network.")] = 1,
    cheats: Annotated[str, typer.Option(help="Cheats of a new network: copycat, freerider.")] = "copycat,freerider",
    windows: Annotated[int | None, typer.Option(min=1, help="End after so many more windows.")] = None,
    text: Annotated[Path | None, typer.Option(help="Folder of text to train on [the standard library].")] = None,
    preset: Annotated[str, typer.Option(help="Constants of a new run: a preset, or a TOML file.")] = "demo",
    block_seconds: Annotated[float, typer.Option(min=0.05, help="Block time of a new network.")] = 1.0,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live screen.")] = False,
    as_json: Json = False,
) -> None:
    """Run a whole network on this machine, or resume the one in the folder."""
    from neurons.founding import Plan
    from neurons.localnet import up as run_up

    console = Console(stderr=as_json)
    kinds = tuple(kind.strip() for kind in cheats.split(",") if kind.strip())
    plan = Plan(miners, validators, kinds, preset, block_seconds, text)
    result = run_up(folder.absolute(), plan, windows, console, plain or not console.is_terminal)
    if as_json:
        print(json.dumps(result))


@app.command()
def leaderboard(folder: Dir = Path("windrow-network"), as_json: Json = False) -> None:
    """Who earns what, from the buckets and the chain alone."""
    from neurons.leaderboard.terminal import leaderboard_table
    from neurons.leaderboard.view import View

    async def read(watcher: Any) -> View:
        return await watcher.refresh()

    view = _read(folder, read)
    if as_json:
        print(json.dumps(view.to_json()))
    else:
        Console().print(leaderboard_table(view, None))


@app.command()
def explain(
    uid: Annotated[int, typer.Argument(help="Slot of the peer.")],
    window: Annotated[int | None, typer.Argument(help="Window [the newest].")] = None,
    folder: Dir = Path("windrow-network"),
    as_json: Json = False,
) -> None:
    """Why a peer got its score in a window, from receipts alone."""
    from neurons.explain import Explanation
    from neurons.explain import explain as explain_receipts

    async def read(watcher: Any) -> Explanation:
        await watcher.refresh()
        receipts = await watcher.receipts(window)
        receipt = receipts.of(uid)
        incentive = await watcher.incentive(uid, receipt.hotkey) if receipt else None
        return explain_receipts(receipts, uid, watcher.run, incentive)

    explanation = _read(folder, read)
    if as_json:
        print(json.dumps(explanation.to_json()))
    else:
        Console().print(explanation)


def _read(folder: Path, read: Any) -> Any:
    from neurons.localnet import open_watcher

    if not (folder / "run.toml").exists():
        raise ConfigError(f"there is no network in {folder}; start one with: windrow up --dir {folder}")
    watcher = open_watcher(folder.absolute())

    async def run() -> Any:
        try:
            return await read(watcher)
        finally:
            await watcher.chain.close()

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
