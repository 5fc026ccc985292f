"""The flags of a neuron's settings, for every command that takes them; those that Bittensor users type among them.

Secrets have no flags: every user of a machine sees those in its list of processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

_SETTINGS: dict[str, Any] = {
    "dir": Annotated[Path | None, typer.Option("--dir", help="Folder of a network on this machine.")],
    "run": Annotated[str | None, typer.Option("--run", help="Where the run is published: URL, or path, of run.toml.")],
    "wallet_name": Annotated[str | None, typer.Option("--wallet.name", help="Name of the wallet.")],
    "wallet_hotkey": Annotated[str | None, typer.Option("--wallet.hotkey", help="Name of its hotkey.")],
    "wallet_path": Annotated[Path | None, typer.Option("--wallet.path", help="Folder of wallets.")],
    "register_hotkey": Annotated[
        bool | None, typer.Option("--register", help="Register the hotkey on the subnet if it is not.")
    ],
    "bucket": Annotated[
        str | None,
        typer.Option("--bucket", help="The own bucket: s3://BUCKET, r2://ACCOUNT/BUCKET or https://HOST/BUCKET."),
    ],
    "public_url": Annotated[
        str | None, typer.Option("--public-url", help="Where anybody reads the own bucket, if no read key is given.")
    ],
    "aws_profile": Annotated[
        str | None, typer.Option("--aws-profile", help="AWS profile with the key that writes the own bucket.")
    ],
    "subtensor_network": Annotated[
        str | None, typer.Option("--subtensor.network", help="Chain: finney, test, local or ws://… of a node.")
    ],
    "subtensor_chain_endpoint": Annotated[
        str | None,
        typer.Option("--subtensor.chain_endpoint", help="Chain: ws://… of a node, or sqlite:PATH of a built-in one."),
    ],
    "netuid": Annotated[int | None, typer.Option("--netuid", help="Subnet, if not the one the publication names.")],
    "dataset": Annotated[str | None, typer.Option("--dataset", help="Folder or URL of the run's dataset.")],
    "buckets": Annotated[Path | None, typer.Option("--buckets", help="All buckets of a built-in chain.")],
    "state": Annotated[Path | None, typer.Option("--state", help="Local state and status.")],
    "threads": Annotated[int | None, typer.Option("--threads", help="Threads torch may use.")],
    "dtype": Annotated[str | None, typer.Option("--dtype", help="bf16, fp32 or auto: the faster one.")],
}
"""Each is a field of `neurons.settings.Given`, and None when it was not given."""

_CONFIG = Annotated[Path | None, typer.Option("--config", help="TOML file of these settings, and of keys.")]


_LOOKING = ("dir", "run", "dataset", "subtensor_network", "subtensor_chain_endpoint", "netuid", "buckets")
"""What says where to look at a run, for who takes no part (`neurons.settings.Viewpoint`)."""


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """`command(flags, config, …)` as typer takes it: with an option for each setting instead of `flags`, and `config`
    for the file of settings."""
    return _with_options(command, _SETTINGS, {"config": _CONFIG})


def with_viewpoint(command: Callable[..., None]) -> Callable[..., None]:
    """`command(flags, …)` as typer takes it, with an option for everything that says where to look at a run."""
    return _with_options(command, {name: _SETTINGS[name] for name in _LOOKING}, {})


def _with_options(command: Callable[..., None], flags: dict[str, Any], others: dict[str, Any]) -> Callable[..., None]:
    """`command(flags, *others, …)` with an option for each of `flags` and of `others`."""
    own = dict(list(inspect.signature(command, eval_str=True).parameters.items())[1 + len(others) :])

    def run(**given: Any) -> None:
        command({name: given.pop(name) for name in flags}, *(given.pop(name) for name in others), **given)

    options = {**flags, **others}
    added = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=a) for n, a in options.items()
    ]
    kept = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own.values()]
    run.__signature__ = inspect.Signature([*added, *kept])  # type: ignore[attr-defined]
    run.__annotations__ = options | {name: parameter.annotation for name, parameter in own.items()}
    run.__doc__ = command.__doc__
    return run
