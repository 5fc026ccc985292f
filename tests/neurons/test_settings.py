from __future__ import annotations

from pathlib import Path

import pytest

from neurons.errors import ConfigError
from neurons.settings import NodeSettings, load_settings


def load(
    flags: dict[str, object] | None = None, environment: dict[str, str] | None = None, **more: object
) -> NodeSettings:
    return load_settings({"dir": "/net", **(flags or {}), **more}, environment or {})


def complaint(*arguments: object, **more: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(*arguments, **more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_folder_of_a_network_gives_every_path() -> None:
    settings = load(wallet_name="bob")
    assert settings.run == Path("/net/run.toml")
    assert settings.dataset == Path("/net/dataset")
    assert settings.buckets == Path("/net/buckets")
    assert settings.wallet_path == Path("/net/wallets")
    assert settings.chain_file == Path("/net/chain.sqlite")
    assert settings.folder == Path("/net/nodes/bob")


def test_a_path_that_is_given_wins_over_the_one_in_the_folder() -> None:
    settings = load(wallet_path=Path("/mine"), subtensor_chain_endpoint="sqlite:/other.sqlite")
    assert settings.wallet_path == Path("/mine")
    assert settings.chain_file == Path("/other.sqlite")
    assert settings.run == Path("/net/run.toml")


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('dir = "/file"\nwallet_name = "file"\nthreads = 2\ndtype = "fp32"\n')
    environment = {"WINDROW_WALLET_NAME": "environment", "WINDROW_THREADS": "3", "HOME": "/root"}
    settings = load_settings({"threads": 4, "dtype": None}, environment, config)
    assert (settings.threads, settings.wallet_name, settings.dtype, settings.dir) == (
        4,
        "environment",
        "fp32",
        Path("/file"),
    )


def test_flags_that_were_not_given_do_not_count() -> None:
    assert load(dtype=None, register_hotkey=None, wallet_path=None) == load()


def test_a_second_hotkey_of_a_wallet_has_a_folder_of_its_own() -> None:
    assert load(wallet_name="bob").name == "bob"
    assert load(wallet_name="bob", wallet_hotkey="second").name == "bob-second"


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('dir = "/net"\nwallet_nam = "bob"\n')
    assert "wallet_nam" in complaint({}, {}, config)


@pytest.mark.parametrize("content", [None, b"dir = ", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    config = tmp_path / "node.toml"
    if content is not None:
        config.write_bytes(content)
    assert str(config) in complaint({}, {}, config)


def test_a_misspelt_environment_variable_is_not_passed_over() -> None:
    assert "did you mean WINDROW_WALLET_NAME" in complaint({"dir": "/net"}, {"WINDROW_WALET_NAME": "bob"})


def test_without_a_folder_every_missing_path_is_named_at_once() -> None:
    sentence = complaint({}, {})
    assert all(name in sentence for name in ("run", "dataset", "buckets", "state", "--dir"))


@pytest.mark.parametrize(
    "flags",
    [
        {"subtensor_network": "finney"},
        {"subtensor_chain_endpoint": "wss://entrypoint-finney.opentensor.ai:443"},
    ],
)
def test_another_chain_than_the_built_in_one_is_refused(flags: dict[str, object]) -> None:
    assert "built-in chain only" in complaint({"dir": "/net", **flags}, {})


def test_the_built_in_chain_has_one_subnet() -> None:
    assert load(netuid=1, subtensor_network="local").netuid == 1
    assert "--netuid" in complaint({"dir": "/net", "netuid": 2}, {})


@pytest.mark.parametrize(
    "flags", [{"threads": 0}, {"threads": "many"}, {"dtype": "fp8"}, {"register_hotkey": "perhaps"}]
)
def test_an_impossible_value_is_named(flags: dict[str, object]) -> None:
    assert next(iter(flags)) in complaint({"dir": "/net", **flags}, {})


def test_every_setting_can_come_from_each_source(tmp_path: Path) -> None:
    values = {
        "dir": "/net",
        "run": "/a/run.toml",
        "dataset": "/a/dataset",
        "buckets": "/a/buckets",
        "state": "/a/state",
        "wallet_name": "bob",
        "wallet_hotkey": "second",
        "wallet_path": "/a/wallets",
        "netuid": 1,
        "subtensor_network": "local",
        "subtensor_chain_endpoint": "sqlite:/a/chain",
        "threads": 2,
        "dtype": "bf16",
        "register_hotkey": True,
    }
    assert values.keys() == NodeSettings.model_fields.keys()
    config = tmp_path / "node.toml"
    written = {name: f'"{value}"' if isinstance(value, str) else str(value).lower() for name, value in values.items()}
    config.write_text("".join(f"{name} = {value}\n" for name, value in written.items()))
    environment = {f"WINDROW_{name.upper()}": str(value).lower() for name, value in values.items() if name != "netuid"}
    assert load_settings(values, {}) == load_settings({}, environment) == load_settings({}, {}, config)
