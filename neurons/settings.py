"""A neuron's own settings: TOML file, then environment, then flags; checked once, then passed on.

What peers must agree on is in run.toml, never here. Nothing else in this project reads the environment. Secrets come
from the environment or from files that only their owner can read, never from flags: every user of a machine sees
those in its list of processes.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from neurons.errors import ConfigError
from neurons.folder import BUILT_IN_CHAIN, Places
from neurons.own_bucket import OwnBucket, check_readers, endpoint_of, own_location
from storage.credentials import Credentials, Secret
from storage.errors import BadCredentials
from storage.profiles import Profile, profile_from, require_private

ENVIRONMENT_PREFIX = "WINDROW_"

_SECRETS = ("read_secret", "write_secret")


Source = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""A path or a URL."""


class Given(BaseModel):
    """Every setting there is, as it may be given. Those that are None were not."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    dir: Path | None = None
    run: Source | None = None
    dataset: Source | None = None
    state: Path = Path("~/.windrow")
    wallet_name: str = "default"
    wallet_hotkey: str = "default"
    wallet_path: Path = Path("~/.bittensor/wallets")
    netuid: Annotated[int, Field(ge=1)] | None = None
    subtensor_network: str | None = None
    subtensor_chain_endpoint: str | None = None
    buckets: Path | None = None
    bucket: str | None = None
    public_url: str | None = None
    read_key_id: str | None = None
    read_secret: Secret | None = None
    write_key_id: str | None = None
    write_secret: Secret | None = None
    aws_profile: str | None = None
    threads: Annotated[int, Field(ge=1)] = 1
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    register_hotkey: bool = False


_VARIABLES = {ENVIRONMENT_PREFIX + name.upper(): name for name in Given.model_fields}


@dataclass(frozen=True, slots=True)
class BuiltInChain:
    """The chain of a network on one machine: one SQLite file."""

    file: Path


@dataclass(frozen=True, slots=True)
class BittensorChain:
    """A subnet of a Bittensor chain; None where the publication of the run says it."""

    network: str | None
    netuid: int | None


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Everything a neuron needs to know about the machine it runs on.

    `run` and `dataset` are paths or https URLs; without `dataset` it lies where the publication of the run says.
    `buckets` is the folder of all buckets of the built-in chain, None on Bittensor. `own` is the own bucket, None if
    it is one in that folder. `threads` is what torch may use, `dtype` what the model computes in (`auto`: whichever a
    one-second probe finds faster).
    """

    run: str
    dataset: str | None
    chain: BuiltInChain | BittensorChain
    buckets: Path | None
    own: OwnBucket | None
    state: Path
    wallet_name: str
    wallet_hotkey: str
    wallet_path: Path
    threads: int
    dtype: str
    register_hotkey: bool

    @property
    def name(self) -> str:
        """How this neuron is called on screens and in folders."""
        return self.wallet_name if self.wallet_hotkey == "default" else f"{self.wallet_name}-{self.wallet_hotkey}"

    @property
    def folder(self) -> Path:
        """Local state of this neuron."""
        return self.state / self.name


@dataclass(frozen=True, slots=True)
class Viewpoint:
    """Where somebody looks at a run who takes no part: no wallet, no bucket of one's own. `folder` is the network on
    this machine, and then everything lies in it; else `run`, `dataset`, `chain` and `buckets` are those of
    `NodeSettings`."""

    folder: Path | None
    run: str
    dataset: str | None
    chain: BuiltInChain | BittensorChain
    buckets: Path | None


_OF_VIEWPOINT = ("dir", "run", "dataset", "netuid", "subtensor_network", "subtensor_chain_endpoint", "buckets")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the three sources say. `settings` is what could be made of it, None if too much is wrong; `problems` are
    sentences, each with what to do."""

    settings: NodeSettings | None
    problems: tuple[str, ...]


def load_settings(
    flags: Mapping[str, object], environment: Mapping[str, str], config: Path | None = None
) -> NodeSettings:
    """Merge the three sources; a flag that is None was not given. Raises `ConfigError` with every problem."""
    reading = read_settings(flags, environment, config)
    if reading.settings is None or reading.problems:
        raise ConfigError("settings: " + "; ".join(reading.problems))
    return reading.settings


def load_viewpoint(flags: Mapping[str, object], environment: Mapping[str, str], folder: Path) -> Viewpoint:
    """Where to look, by flags and environment; at the network in `folder` when neither names a run. A `--dir` alone is
    the whole of it: what the shell says of a node's run must not mix with a network on this machine. Raises
    `ConfigError`."""
    named = {name: value for name, value in flags.items() if value is not None}
    if named.keys() & {"dir", "run"} == {"dir", "run"}:
        raise ConfigError("--dir names a network on this machine, --run a published run: leave out one of the two")
    trouble = _Trouble()
    _require_known(environment)
    values = named if "dir" in named else _from_environment(environment) | named
    if "run" in named:
        values.pop("dir", None)
    if "run" not in values:
        values = Places(Path(str(values.get("dir", folder)))).settings() | {"dir": values.get("dir", folder)} | values
    trouble.unless(_require_one_chain, values)
    given = trouble.given({name: values[name] for name in _OF_VIEWPOINT if name in values})
    chain = _chain(given)
    if isinstance(chain, BuiltInChain):
        trouble.unless(_require_fitting, given, chain)
    if trouble.problems or given.run is None:
        raise ConfigError("settings: " + "; ".join(trouble.problems))
    return Viewpoint(given.dir, given.run, given.dataset, chain, _buckets(given, chain))


def read_settings(flags: Mapping[str, object], environment: Mapping[str, str], config: Path | None = None) -> Reading:
    """As `load_settings`, for who wants to go on as far as possible: raises nothing."""
    trouble = _Trouble()
    values = trouble.unless(_from_file, config) or {}
    values |= _from_environment(environment)
    trouble.unless(_require_known, environment)
    values |= {name: value for name, value in flags.items() if value is not None}
    trouble.unless(_require_one_chain, values)
    if isinstance(folder := values.get("dir"), (str, Path)):
        values = Places(Path(folder)).settings() | values
    given = trouble.given(values)
    chain = _chain(given)
    trouble.unless(_require_fitting, given, chain)
    own = _own(trouble, given, environment, isinstance(chain, BuiltInChain))
    settings = None
    if given.run is not None:
        settings = _settings(given, given.run, chain, own)
    elif not any(problem.startswith("run: ") for problem in trouble.problems):
        trouble.problems.append(
            "run not given: give --run and the URL that the run's publisher names, or the --dir of a network on this "
            "machine"
        )
    return Reading(settings, tuple(trouble.problems))


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Problems found so far: one must not hide the next."""

    problems: list[str] = field(default_factory=list)

    def unless(self, call: Callable[..., Result], *arguments: object) -> Result | None:
        """What the call returns; None, and a problem more, when it raises `ConfigError` or `BadCredentials`."""
        try:
            return call(*arguments)
        except (ConfigError, BadCredentials) as error:
            self.problems.append(str(error))
            return None

    def given(self, values: Mapping[str, object]) -> Given:
        """The values that can be, and a problem more for each that cannot."""
        try:
            return Given.model_validate(values)
        except ValidationError as error:
            wrong = set()
            for problem in error.errors(include_url=False, include_input=False):
                name = ".".join(str(part) for part in problem["loc"])
                unknown = problem["type"] == "extra_forbidden"
                self.problems.append(f"{name}: {'there is no such setting, remove it' if unknown else problem['msg']}")
                wrong.add(problem["loc"][0])
            return Given.model_validate({name: value for name, value in values.items() if name not in wrong})


def _settings(given: Given, run: str, chain: BuiltInChain | BittensorChain, own: OwnBucket | None) -> NodeSettings:
    return NodeSettings(
        run=run,
        dataset=given.dataset,
        chain=chain,
        # Not where the own bucket was to be another one: nothing may be written into the wrong one.
        buckets=_buckets(given, chain) if own or given.bucket is None else None,
        own=own,
        state=given.state.expanduser(),
        wallet_name=given.wallet_name,
        wallet_hotkey=given.wallet_hotkey,
        wallet_path=given.wallet_path.expanduser(),
        threads=given.threads,
        dtype=given.dtype,
        register_hotkey=given.register_hotkey,
    )


def _buckets(given: Given, chain: BuiltInChain | BittensorChain) -> Path | None:
    """The folder in which peers may have their buckets, also where the own one is in a store."""
    return given.buckets or chain.file.parent / "buckets" if isinstance(chain, BuiltInChain) else None


# --- sources ----------------------------------------------------------------------------------------------


def _from_file(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        values = dict(tomllib.loads(path.read_text()))
        if held := [name for name in _SECRETS if name in values]:
            require_private(path, " and ".join(held))
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"cannot read the settings in {path}: {error}") from error
    return {name: Secret(str(value)) if name in _SECRETS else value for name, value in values.items()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    # Empty is not given: so a compose file can name a variable that its owner may leave out.
    given = {name: environment.get(variable) for variable, name in _VARIABLES.items()}
    return {name: Secret(value) if name in _SECRETS else value for name, value in given.items() if value}


def _require_known(environment: Mapping[str, str]) -> None:
    given = {name for name, value in environment.items() if value and name.startswith(ENVIRONMENT_PREFIX)}
    for name in sorted(given - _VARIABLES.keys()):
        # A misspelt variable that is passed over would start a node with settings nobody chose.
        near = difflib.get_close_matches(name, _VARIABLES, n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        raise ConfigError(f"there is no setting for the environment variable {name}; {hint}")


# --- chain ------------------------------------------------------------------------------------------------


def _require_one_chain(values: Mapping[str, object]) -> None:
    network, endpoint = values.get("subtensor_network"), values.get("subtensor_chain_endpoint")
    if network and endpoint:
        raise ConfigError("--subtensor.network and --subtensor.chain_endpoint name a chain each: leave out one of them")
    if network and values.get("dir"):
        raise ConfigError(f"--dir is on the built-in chain in that folder, not on {network}: leave out one of the two")


def _chain(given: Given) -> BuiltInChain | BittensorChain:
    endpoint = given.subtensor_chain_endpoint
    if endpoint is not None and endpoint.startswith(BUILT_IN_CHAIN):
        return BuiltInChain(Path(endpoint.removeprefix(BUILT_IN_CHAIN)))
    return BittensorChain(endpoint or given.subtensor_network, given.netuid)


def _require_fitting(given: Given, chain: BuiltInChain | BittensorChain) -> None:
    if isinstance(chain, BuiltInChain):
        if given.netuid not in (None, 1):
            raise ConfigError("the built-in chain has one subnet, number 1: leave out --netuid")
        if given.buckets is None and given.bucket is None:
            raise ConfigError("buckets not given: give --dir, or --buckets, the folder of all buckets")
    elif given.buckets is not None:
        raise ConfigError("--buckets is for the built-in chain: give --bucket, where this node's own bucket is")


# --- the own bucket ---------------------------------------------------------------------------------------


def _own(trouble: _Trouble, given: Given, environment: Mapping[str, str], built_in: bool) -> OwnBucket | None:
    if given.bucket is None:
        if not built_in:
            trouble.problems.append(
                "bucket not given: give --bucket, where this node keeps what it publishes, e.g. s3://NAME?region=REGION"
            )
        return None
    # Where the key is given here, a profile in the shell that is of no use must not stand in the way.
    aside = _Trouble() if given.write_key_id and given.write_secret is not None else trouble
    aws = aside.unless(profile_from, environment, given.aws_profile) or Profile()
    endpoint = trouble.unless(endpoint_of, given.bucket, aws)
    write = trouble.unless(_write_key, given, aws)
    before = len(trouble.problems)
    read = trouble.unless(_key, given.read_key_id, given.read_secret, "WINDROW_READ_KEY_ID and WINDROW_READ_SECRET")
    if len(trouble.problems) == before:
        trouble.unless(check_readers, write, read, given.public_url)
    if endpoint is None or write is None or len(trouble.problems) > before:
        return None
    location = trouble.unless(own_location, endpoint, read, given.public_url, built_in)
    return OwnBucket(endpoint, write, location) if location else None


def _write_key(given: Given, aws: Profile) -> Credentials:
    names = "write_key_id and write_secret"
    key = _key(given.write_key_id, given.write_secret, names) or aws.credentials
    if key is None:
        raise ConfigError(
            "the key that may write the bucket is not given: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a "
            f"profile with --aws-profile, or put {names} into the file of --config"
        )
    return key


def _key(key_id: str | None, secret: Secret | None, names: str) -> Credentials | None:
    """An access key from its two halves; None when there are none."""
    if not key_id and secret is None:
        return None
    if not key_id or secret is None:
        raise ConfigError(f"{names} belong together: give both")
    try:
        return Credentials(key_id, secret)
    except BadCredentials as error:
        raise ConfigError(f"{names}: {error}") from error
