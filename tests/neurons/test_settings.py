from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from neurons.errors import ConfigError
from neurons.settings import (
    BittensorChain,
    BuiltInChain,
    Given,
    NodeSettings,
    load_settings,
    load_viewpoint,
    read_settings,
)
from storage.credentials import Credentials, Secret
from storage.location import HttpsLocation, R2Location, S3Location

WRITE = {"AWS_ACCESS_KEY_ID": "writer", "AWS_SECRET_ACCESS_KEY": "written-secret"}
READ = {"WINDROW_READ_KEY_ID": "reader", "WINDROW_READ_SECRET": "reading-secret"}
RUN = "https://runs.example.org/0123456789abcdef/run.toml"
BUCKET = "https://s3.example.org/windrow"


def load(
    flags: dict[str, object] | None = None, environment: dict[str, str] | None = None, **more: object
) -> NodeSettings:
    """Settings on the built-in chain."""
    return load_settings({"dir": "/net", **(flags or {}), **more}, environment or {})


def remote(environment: dict[str, str] | None = None, **flags: object) -> NodeSettings:
    """Settings on Bittensor, with keys for everything unless others are given."""
    given = {"HOME": "/nobody"} | (WRITE | READ if environment is None else environment)
    return load_settings({"run": RUN, "bucket": BUCKET, **flags}, given)


def complaint(*arguments: object, **more: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(*arguments, **more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def remote_complaint(environment: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        remote(environment, **flags)
    return str(caught.value)


# --- the three sources ------------------------------------------------------------------------------------


def test_the_folder_of_a_network_gives_every_path() -> None:
    settings = load(wallet_name="bob")
    assert settings.run == "/net/run.toml"
    assert settings.dataset == "/net/dataset"
    assert settings.buckets == Path("/net/buckets")
    assert settings.wallet_path == Path("/net/wallets")
    assert settings.chain == BuiltInChain(Path("/net/chain.sqlite"))
    assert settings.folder == Path("/net/nodes/bob")
    assert settings.own is None


def test_a_path_that_is_given_wins_over_the_one_in_the_folder() -> None:
    settings = load(wallet_path=Path("/mine"), subtensor_chain_endpoint="sqlite:/other.sqlite")
    assert settings.wallet_path == Path("/mine")
    assert settings.chain == BuiltInChain(Path("/other.sqlite"))
    assert settings.run == "/net/run.toml"


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('dir = "/file"\nwallet_name = "file"\nthreads = 2\ndtype = "fp32"\n')
    environment = {"WINDROW_WALLET_NAME": "environment", "WINDROW_THREADS": "3", "HOME": "/root"}
    settings = load_settings({"threads": 4, "dtype": None}, environment, config)
    assert (settings.threads, settings.wallet_name, settings.dtype, settings.run) == (
        4,
        "environment",
        "fp32",
        "/file/run.toml",
    )


def test_flags_that_were_not_given_do_not_count() -> None:
    assert load(dtype=None, register_hotkey=None, wallet_path=None) == load()


def test_a_second_hotkey_of_a_wallet_has_a_folder_of_its_own() -> None:
    assert load(wallet_name="bob").name == "bob"
    assert load(wallet_name="bob", wallet_hotkey="second").name == "bob-second"


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('dir = "/net"\nwallet_nam = "bob"\n')
    assert "wallet_nam: there is no such setting" in complaint({}, {}, config)


@pytest.mark.parametrize("content", [None, b"dir = ", b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    config = tmp_path / "node.toml"
    if content is not None:
        config.write_bytes(content)
    assert str(config) in complaint({}, {}, config)


def test_a_misspelt_environment_variable_is_not_passed_over() -> None:
    assert "did you mean WINDROW_WALLET_NAME" in complaint({"dir": "/net"}, {"WINDROW_WALET_NAME": "bob"})


def test_an_empty_variable_is_one_that_was_not_given() -> None:
    assert load(environment={"WINDROW_WALLET_NAME": "", "WINDROW_READ_SECRET": ""}) == load()


@pytest.mark.parametrize(
    "flags", [{"threads": 0}, {"threads": "many"}, {"dtype": "fp8"}, {"register_hotkey": "perhaps"}, {"netuid": 0}]
)
def test_an_impossible_value_is_named(flags: dict[str, object]) -> None:
    assert next(iter(flags)) in complaint({"dir": "/net", **flags}, {})


VALUES = {
    "dir": "/net",
    "run": "/a/run.toml",
    "dataset": "/a/dataset",
    "buckets": "/a/buckets",
    "state": "/a/state",
    "wallet_name": "bob",
    "wallet_hotkey": "second",
    "wallet_path": "/a/wallets",
    "netuid": 1,
    "subtensor_chain_endpoint": "sqlite:/a/chain",
    "bucket": BUCKET,
    "read_key_id": "reader",
    "read_secret": "reading-secret",
    "write_key_id": "writer",
    "write_secret": "written-secret",
    "threads": 2,
    "dtype": "bf16",
    "register_hotkey": True,
}
ALONE = {"subtensor_network": "finney", "public_url": "https://cdn.example.org", "aws_profile": "none"}
"""Settings that do not go with all others."""


def written(path: Path, values: dict[str, object]) -> Path:
    lines = (f"{n} = " + (f'"{v}"' if isinstance(v, str) else str(v).lower()) for n, v in values.items())
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


def test_every_setting_can_come_from_each_source(tmp_path: Path) -> None:
    assert VALUES.keys() | ALONE.keys() == Given.model_fields.keys()
    config = written(tmp_path / "node.toml", VALUES)
    environment = {f"WINDROW_{name.upper()}": str(value).lower() for name, value in VALUES.items()}
    environment |= {"WINDROW_BUCKET": BUCKET}
    by_file = load_settings({}, {}, config)
    assert by_file == load_settings({}, environment)
    assert by_file == load_settings({n: v for n, v in VALUES.items()}, {})
    assert by_file.own is not None
    assert by_file.own.write == Credentials("writer", Secret("written-secret"))


# --- a miner on Bittensor ---------------------------------------------------------------------------------


def test_seven_values_are_a_whole_miner() -> None:
    flags = {"run": RUN, "wallet_name": "bob", "bucket": BUCKET}
    assert len(flags) + len(WRITE) + len(READ) <= 8
    settings = load_settings(flags, WRITE | READ | {"HOME": "/home/bob"})
    assert settings.chain == BittensorChain(None, None)  # the publication of the run names it
    assert settings.buckets is None
    assert settings.own is not None
    assert settings.own.write == Credentials("writer", Secret("written-secret"))
    assert settings.own.location == S3Location(settings.own.endpoint, Credentials("reader", Secret("reading-secret")))


def test_the_chain_can_be_named_by_network_or_by_endpoint() -> None:
    assert remote(subtensor_network="test", netuid=39).chain == BittensorChain("test", 39)
    assert remote(subtensor_chain_endpoint="ws://10.0.0.7:9944").chain == BittensorChain("ws://10.0.0.7:9944", None)


def test_everything_that_is_missing_is_named_in_one_go() -> None:
    sentence = complaint({"threads": 0}, {"HOME": "/nobody"})
    assert all(words in sentence for words in ("threads: ", "give --run", "give --bucket"))
    sentence = complaint({"run": RUN, "bucket": "s3://bucket"}, {"HOME": "/nobody"})
    assert "the region of s3://bucket is not known" in sentence
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in sentence
    assert "set WINDROW_READ_KEY_ID and WINDROW_READ_SECRET" in sentence


def test_what_could_be_made_of_bad_settings_is_still_there_for_the_doctor() -> None:
    reading = read_settings({"run": RUN, "wallet_name": "bob", "dtype": "fp8"}, {"HOME": "/nobody"})
    assert reading.settings is not None
    assert (reading.settings.name, reading.settings.own) == ("bob", None)
    assert len(reading.problems) == 2


def test_two_chains_are_refused() -> None:
    both = {"subtensor_network": "test", "subtensor_chain_endpoint": "ws://127.0.0.1:9944"}
    assert "leave out one of them" in remote_complaint(**both)
    assert "leave out one of the two" in complaint({"dir": "/net", "subtensor_network": "finney"}, {})


def test_what_belongs_to_the_other_chain_is_refused() -> None:
    assert "leave out --netuid" in complaint({"dir": "/net", "netuid": 2}, {})
    assert load(netuid=1) == load()
    assert "--buckets is for the built-in chain" in remote_complaint(buckets="/buckets")
    lonely = {"run": "/a/run.toml", "subtensor_chain_endpoint": "sqlite:/a/chain"}
    assert "buckets not given" in complaint(lonely, {})


# --- where the own bucket is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("s3://name?region=eu-1", {}, "https://s3.eu-1.amazonaws.com eu-1 name  virtual"),
        ("s3://name/a/b", {"AWS_REGION": "us-2"}, "https://s3.us-2.amazonaws.com us-2 name a/b virtual"),
        ("s3://na.me", {"AWS_DEFAULT_REGION": "r1"}, "https://s3.r1.amazonaws.com r1 na.me  path"),
        ("s3://name", {"AWS_ENDPOINT_URL": "https://minio.org"}, "https://minio.org us-east-1 name  path"),
        ("https://minio.org:9000/name/pre", {}, "https://minio.org:9000 us-east-1 name pre path"),
        ("https://oss.org/name?style=virtual&region=r2", {}, "https://oss.org r2 name  virtual"),
        ("https://s3.eu-1.amazonaws.com/name", {}, "https://s3.eu-1.amazonaws.com eu-1 name  virtual"),
        ("https://name.s3.eu-1.amazonaws.com/p", {}, "https://s3.eu-1.amazonaws.com eu-1 name p virtual"),
    ],
)
def test_a_bucket_is_named_as_people_write_it(url: str, variables: dict[str, str], expected: str) -> None:
    settings = remote(WRITE | READ | variables, bucket=url)
    assert settings.own is not None
    at = settings.own.endpoint
    style = "path" if at.path_style else "virtual"
    assert f"{at.url} {at.region} {at.bucket} {at.prefix} {style}" == expected


ACCOUNT = "0123456789abcdef" * 2


@pytest.mark.parametrize("url", [f"r2://{ACCOUNT}/name", f"https://{ACCOUNT}.r2.cloudflarestorage.com/name"])
def test_a_bucket_at_r2_commits_the_short_form(url: str) -> None:
    read = {"WINDROW_READ_KEY_ID": "a" * 32, "WINDROW_READ_SECRET": "b" * 64}
    settings = remote(WRITE | read, bucket=url)
    assert settings.own is not None
    assert settings.own.location == R2Location(ACCOUNT, "name", Credentials("a" * 32, Secret("b" * 64)))


def test_a_public_url_needs_no_read_key_and_the_bucket_itself_may_be_private() -> None:
    settings = remote(WRITE, bucket="http://10.0.0.5:9000/name", public_url="https://cdn.example.org/name/")
    assert settings.own is not None
    assert settings.own.location == HttpsLocation("https://cdn.example.org/name")


def test_on_the_built_in_chain_a_bucket_may_be_on_this_machine() -> None:
    settings = load(bucket="http://127.0.0.1:7480/name", environment=WRITE | READ)
    assert settings.own is not None
    assert isinstance(settings.own.location, S3Location)
    assert settings.buckets == Path("/net/buckets")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"bucket": "my-bucket"}, "names no bucket"),
        ({"bucket": "ftp://host/bucket"}, "names no bucket"),
        ({"bucket": "https://s3.example.org/"}, "is not a bucket name"),
        ({"bucket": "https://s3.example.org/name?zone=3"}, "a bucket is s3://"),
        ({"bucket": "https://s3.example.org/name?style=odd"}, "a bucket is s3://"),
        ({"bucket": "https://s3.example.org/name?region"}, "a bucket is s3://"),
        ({"bucket": "https://key:secret@s3.example.org/name"}, "holds a key"),
        ({"bucket": "https://[::1/name"}, "a bucket is s3://"),
        ({"bucket": "r2://account/name"}, "32 hexadecimal digits"),
        ({"bucket": f"r2://{ACCOUNT}/name"}, "32 lower-case hexadecimal digits"),
        ({"bucket": "http://s3.example.org/name"}, "not read by https"),
        ({"bucket": "https://10.1.2.3/name"}, "no peer's bucket can be there"),
        ({"bucket": "https://s3.example.org/name/" + "p" * 120}, "shorten the prefix"),
        ({"public_url": "https://cdn.example.org"}, "not both"),
    ],
)
def test_a_bucket_that_no_peer_could_read_is_refused(flags: dict[str, object], words: str) -> None:
    assert words in remote_complaint(**flags)


@pytest.mark.parametrize("url", ["http://cdn.example.org", "https://127.0.0.1/name", "https://cdn.example.org/?x"])
def test_a_public_url_that_is_not_public_is_refused(url: str) -> None:
    assert "others could not read the bucket" in remote_complaint(WRITE, public_url=url)


# --- keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (READ, "the key that may write the bucket is not given"),
        (WRITE, "others must be able to read the bucket"),
        (WRITE | {"WINDROW_READ_KEY_ID": "reader"}, "WINDROW_READ_KEY_ID and WINDROW_READ_SECRET belong together"),
        ({"AWS_ACCESS_KEY_ID": "writer"} | READ, "half an access key in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (WRITE | READ | {"AWS_SESSION_TOKEN": "token"}, "is temporary"),
        (WRITE | {"WINDROW_READ_KEY_ID": "writer", "WINDROW_READ_SECRET": "x"}, "the read key is the write key"),
        (WRITE | {"WINDROW_READ_KEY_ID": "x", "WINDROW_READ_SECRET": "written-secret"}, "the read key is the write"),
        (WRITE | {"WINDROW_READ_KEY_ID": "a b", "WINDROW_READ_SECRET": "x"}, "printable ASCII"),
        (WRITE | READ | {"WINDROW_READ_SECRET": ""}, "WINDROW_READ_KEY_ID and WINDROW_READ_SECRET belong together"),
    ],
)
def test_keys_that_cannot_work_are_refused(environment: dict[str, str], words: str) -> None:
    assert words in remote_complaint(environment)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with two AWS profiles."""
    (tmp_path / ".aws").mkdir()
    secrets = tmp_path / ".aws" / "credentials"
    secrets.write_text(
        "[default]\naws_access_key_id = d-id\naws_secret_access_key = d%secret\n"
        "[other]\naws_access_key_id = o-id\naws_secret_access_key = o-secret\n"
    )
    secrets.chmod(0o600)
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = eu-1\n[profile other]\nregion = eu-2\n")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "variables", "key_id", "region"),
    [
        ({}, {}, "d-id", "eu-1"),
        ({}, {"AWS_PROFILE": "other"}, "o-id", "eu-2"),
        ({"aws_profile": "other"}, WRITE, "o-id", "eu-2"),
        ({}, WRITE, "writer", "eu-1"),
        ({}, {"AWS_REGION": "eu-3"}, "d-id", "eu-3"),
    ],
)
def test_profiles_are_read_as_all_s3_tools_do(
    home: Path, flags: dict[str, object], variables: dict[str, str], key_id: str, region: str
) -> None:
    settings = remote(READ | variables | {"HOME": str(home)}, bucket="s3://name", **flags)
    assert settings.own is not None
    assert (settings.own.write.key_id, settings.own.endpoint.region) == (key_id, region)


def test_a_profile_that_is_not_there_is_named(home: Path) -> None:
    sentence = remote_complaint(READ | {"HOME": str(home)}, aws_profile="third")
    assert "there is no AWS profile third" in sentence


def test_a_file_of_profiles_that_is_none_is_named_without_its_text(home: Path) -> None:
    (home / ".aws" / "credentials").write_text("planted-secret\n")
    sentence = remote_complaint(READ | {"HOME": str(home)})
    assert "is not a file of AWS profiles" in sentence
    assert "planted" not in sentence


def test_files_of_secrets_that_others_may_read_are_refused(home: Path, tmp_path: Path) -> None:
    (home / ".aws" / "credentials").chmod(0o640)
    assert "chmod 600" in remote_complaint(READ | {"HOME": str(home)})
    config = tmp_path / "node.toml"
    config.write_text('read_secret = "planted-secret"\n')
    config.chmod(0o644)
    sentence = complaint({"run": RUN, "bucket": BUCKET}, WRITE | {"HOME": "/nobody"}, config)
    assert f"chmod 600 {config}" in sentence
    assert "planted" not in sentence


def test_a_file_without_secrets_may_be_read_by_all(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('dir = "/net"\n')
    config.chmod(0o644)
    assert load_settings({}, {}, config) == load()


def test_no_secret_is_ever_shown() -> None:
    settings = remote()
    assert "secret" not in repr(settings).replace("(secret)", "").replace("secret=", "")
    assert settings == replace(settings)
    for flags in ({"bucket": "nothing"}, {"threads": 0}, {"netuid": -1}):
        sentence = remote_complaint(**flags)
        assert "reading-secret" not in sentence
        assert "written-secret" not in sentence


def test_a_misspelt_variable_does_not_hide_those_that_are_right() -> None:
    told = complaint({}, {"WINDROW_BUKET": "x", "WINDROW_DIR": "/net", "WINDROW_WALLET_NAME": "bob"})
    assert "did you mean WINDROW_BUCKET?" in told
    assert "not given" not in told


# --- looking on -----------------------------------------------------------------------------------------------

HERE = Path("/nets/here")


def test_who_says_nothing_looks_at_the_network_in_the_usual_folder() -> None:
    view = load_viewpoint({}, {}, HERE)
    assert (view.folder, view.run, view.buckets) == (HERE, str(HERE / "run.toml"), HERE / "buckets")
    assert view.chain == BuiltInChain(HERE / "chain.sqlite")


def test_the_folder_that_is_named_is_all_of_it_whatever_the_shell_says() -> None:
    environment = {"WINDROW_RUN": "https://runs.example.org/0123456789abcdef/run.toml", "WINDROW_NETUID": "3"}
    view = load_viewpoint({"dir": Path("/nets/other")}, environment, HERE)
    assert (view.folder, view.run) == (Path("/nets/other"), "/nets/other/run.toml")


def test_a_published_run_is_looked_at_without_wallet_bucket_or_folder() -> None:
    where = "https://runs.example.org/0123456789abcdef/run.toml"
    for flags, environment in (({"run": where}, {"WINDROW_DIR": "/nets/other"}), ({}, {"WINDROW_RUN": where})):
        view = load_viewpoint(flags, environment, HERE)
        assert (view.folder, view.run, view.buckets) == (None, where, None)
        assert view.chain == BittensorChain(None, None)


@pytest.mark.parametrize(
    ("flags", "environment", "sentence"),
    [
        ({"dir": Path("/a"), "run": "/b/run.toml"}, {}, "--dir names a network on this machine, --run a published run"),
        ({"run": "/b/run.toml", "subtensor_chain_endpoint": "sqlite:/c"}, {}, "buckets not given"),
        (
            {"run": "/b/run.toml", "subtensor_network": "test", "subtensor_chain_endpoint": "ws://x"},
            {},
            "leave out one",
        ),
        ({}, {"WINDROW_RUNN": "/b/run.toml"}, "did you mean WINDROW_RUN?"),
        ({"netuid": 0, "run": "/b/run.toml"}, {}, "netuid"),
    ],
)
def test_what_cannot_be_looked_at_is_a_sentence(
    flags: dict[str, object], environment: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        load_viewpoint(flags, environment, HERE)
