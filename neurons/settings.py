"""A neuron's own settings: TOML file, then environment, then flags; checked once, then passed on.

What peers must agree on is in run.toml, never here. Nothing else in this project reads the environment.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neurons.errors import ConfigError
from neurons.folder import BUILT_IN_CHAIN, Places

ENVIRONMENT_PREFIX = "WINDROW_"


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
    netuid: Literal[1] = 1
    subtensor_network: Literal["local"] = "local"
    subtensor_chain_endpoint: str
    threads: Annotated[int, Field(ge=1)] = 1
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
        return Path(self.subtensor_chain_endpoint.removeprefix(BUILT_IN_CHAIN))


def load_settings(
    flags: Mapping[str, object], environment: Mapping[str, str], config: Path | None = None
) -> NodeSettings:
    """Merge the three sources; a flag that is None was not given. Raises `ConfigError` with every problem."""
    values = _from_file(config) if config is not None else {}
    values |= _from_environment(environment)
    values |= {name: value for name, value in flags.items() if value is not None}
    if isinstance(folder := values.get("dir"), (str, Path)):
        values = Places(Path(folder)).settings() | values
    _require_built_in_chain(values)
    try:
        return NodeSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from error


def _from_file(path: Path) -> dict[str, object]:
    try:
        return dict(tomllib.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {error}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    known = {ENVIRONMENT_PREFIX + name.upper(): name for name in NodeSettings.model_fields}
    given = {name: value for name, value in environment.items() if name.startswith(ENVIRONMENT_PREFIX)}
    for name in given.keys() - known.keys():
        # A misspelt variable that is passed over would start a node with settings nobody chose.
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        raise ConfigError(f"there is no setting for the environment variable {name}; {hint}")
    return {known[name]: value for name, value in given.items()}


def _require_built_in_chain(values: Mapping[str, object]) -> None:
    endpoint = values.get("subtensor_chain_endpoint", BUILT_IN_CHAIN)
    if values.get("subtensor_network", "local") != "local" or not str(endpoint).startswith(BUILT_IN_CHAIN):
        raise ConfigError(
            "this version speaks to the built-in chain only: leave out --subtensor.network and give --dir, "
            f"or --subtensor.chain_endpoint {BUILT_IN_CHAIN}PATH"
        )
    if str(values.get("netuid", 1)) != "1":
        raise ConfigError("the built-in chain has one subnet, number 1: leave out --netuid")


def _sentence(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    missing = ", ".join(str(problem["loc"][0]) for problem in problems if problem["type"] == "missing")
    sentences = [f"{missing} not given: give --dir, which sets all paths, or each of them"] if missing else []
    for problem in problems:
        if problem["type"] != "missing":
            name = ".".join(str(part) for part in problem["loc"])
            unknown = problem["type"] == "extra_forbidden"
            sentences.append(f"{name}: {'there is no such setting, remove it' if unknown else problem['msg']}")
    return "settings: " + "; ".join(sentences)
