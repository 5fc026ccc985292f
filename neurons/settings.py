"""A neuron's own settings: TOML file, then environment, then flags; checked once, then passed on.

What peers must agree on is in run.toml, never here. Nothing else in this project reads the environment.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from neurons.errors import ConfigError

ENVIRONMENT_PREFIX = "WINDROW_"

_BUILT_IN_CHAIN = "sqlite:"


class NodeSettings(BaseModel):
    """Everything a neuron needs to know about the machine it runs on.

    `dir` is the folder of a network on this machine; the paths that are not given lie in it. The chain is the
    built-in one, whose endpoint is `sqlite:` and the path of its file. `threads` is what torch may use, `dtype`
    what the model computes in (`auto`: whichever a one-second probe finds faster).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dir: Path | None = None
    run: Path
    dataset: Path
    buckets: Path
    state: Path
    wallet_name: str = "default"
    wallet_hotkey: str = "default"
    wallet_path: Path = Path("~/.bittensor/wallets")
    netuid: int = 1
    subtensor_network: str = "local"
    subtensor_chain_endpoint: str
    threads: int = 1
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    register_hotkey: bool = False

    @property
    def name(self) -> str:
        """How this neuron is called on screens and in folders."""
        return self.wallet_name if self.wallet_hotkey == "default" else f"{self.wallet_name}-{self.wallet_hotkey}"

    @property
    def folder(self) -> Path:
        """Local state of this neuron."""
        return self.state / self.name

    @property
    def chain_file(self) -> Path:
        """The file of the built-in chain."""
        return Path(self.subtensor_chain_endpoint.removeprefix(_BUILT_IN_CHAIN))


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None = None) -> NodeSettings:
    """Merge the three sources; a flag that is None was not given. Raises `ConfigError` with every problem."""
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values |= tomllib.loads(config.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read the settings in {config}: {error}") from error
    known = NodeSettings.model_fields
    values |= {n: environment[k] for n in known if (k := ENVIRONMENT_PREFIX + n.upper()) in environment}
    values |= {name: value for name, value in flags.items() if value is not None}
    if values.get("dir") is not None:
        values = network_defaults(Path(values["dir"])) | values
    _require_built_in_chain(values)
    try:
        return NodeSettings.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors(include_url=False)]
        raise ConfigError("settings: " + "; ".join(problems) + " (or give --dir, which sets them all)") from error


def network_defaults(folder: Path) -> dict[str, Any]:
    """Where things lie in the folder of a network on this machine."""
    return {
        "run": folder / "run.toml",
        "dataset": folder / "dataset",
        "buckets": folder / "buckets",
        "state": folder / "nodes",
        "wallet_path": folder / "wallets",
        "subtensor_chain_endpoint": f"{_BUILT_IN_CHAIN}{folder / 'chain.sqlite'}",
    }


def _require_built_in_chain(values: Mapping[str, Any]) -> None:
    endpoint = values.get("subtensor_chain_endpoint")
    if values.get("subtensor_network", "local") != "local" or (endpoint and not endpoint.startswith(_BUILT_IN_CHAIN)):
        raise ConfigError(
            "this version speaks to the built-in chain only: leave out --subtensor.network and give --dir, "
            "or --subtensor.chain_endpoint sqlite:PATH"
        )
