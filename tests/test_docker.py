"""What lies in docker/ cannot be run where this is developed; so every name in it is compared with what there is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from neurons.cli import app
from neurons.errors import ConfigError
from neurons.settings import ENVIRONMENT_PREFIX, load_settings

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE = sorted(DOCKER.glob("compose*.yml"))
SCRIPTS = [*sorted(DOCKER.glob("*.sh")), *sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run"]
UNIT = DOCKER / "windrow@.service"
EXAMPLE = DOCKER / "node.env.example"

_EXPOSURE_LIMIT = 2.0
"""Of 10, as `systemd-analyze security` counts; half of what is left is that a neuron must reach any address."""
_VALUES_OF_A_MINER = 8
_OUR_IMAGES = ("windrow", "windrow-gpu")


def _tool(name: str, how: str) -> str:
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {how}")
    return found


def _run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environment or None, timeout=60)


def _services(path: Path) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["services"]
    return services


def _stages() -> list[str]:
    return re.findall(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)


def _is_known(variable: str) -> bool:
    try:
        load_settings({}, {variable: "1"})
    except ConfigError as error:
        return "there is no setting for the environment variable" not in str(error)
    return True


def _parse(arguments: list[str]) -> None:
    """Let `windrow` read its arguments, without doing what they say. Raises `click.UsageError`."""
    group: Any = typer.main.get_command(app)
    group.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def test_the_dockerfile_has_no_known_flaw() -> None:
    checked = _run(_tool("hadolint", "`make tools` brings it"), DOCKER / "Dockerfile")
    assert checked.returncode == 0, checked.stdout


def test_what_the_dockerfile_copies_exists_and_is_sent_to_the_engine() -> None:
    sent = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


def test_what_the_dockerfile_takes_from_a_stage_is_made_there_before() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    for match in re.finditer(r"from=(\w+)", text):
        assert f"AS {match[1]}\n" in text[: match.start()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_known_flaw(path: Path) -> None:
    checked = _run(_tool("shellcheck", "`make tools` brings it"), path)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_accepts_its_files(path: Path, tmp_path: Path) -> None:
    compose = _tool("docker-compose", "`make tools` brings it for Python 3.11 on x86-64")
    folder = tmp_path / "docker"
    shutil.copytree(DOCKER, folder)
    for role in ("miner", "validator"):
        shutil.copy(EXAMPLE, folder / f"{role}.env")
    environment = {"HOME": str(tmp_path), "MINIO_ROOT_PASSWORD": "given"}
    checked = _run(compose, "--file", folder / path.name, "config", "--quiet", **environment)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_files_name_only_what_exists(path: Path) -> None:
    services = _services(path)
    volumes = yaml.safe_load(path.read_text()).get("volumes", {})
    for service in services.values():
        if service["image"] in _OUR_IMAGES:
            assert service["build"]["target"] == service["image"]
            assert service["image"] in _stages()
            assert (path.parent / service["build"]["context"] / service["build"]["dockerfile"]).exists()
        else:
            assert re.search(r":RELEASE\.[\d-]+T[\d-]+Z$", service["image"])  # never whatever is newest
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in volumes or source.startswith("${HOME") or (path.parent / source).exists()
        for variable in service.get("environment", {}):
            assert not variable.startswith(ENVIRONMENT_PREFIX) or _is_known(variable)
        assert set(service.get("depends_on", {})) <= services.keys()


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_no_container_has_a_port(path: Path) -> None:
    assert not any("ports" in service or "network_mode" in service for service in _services(path).values())


def test_commands_in_docker_are_understood() -> None:
    neurons = [service for path in COMPOSE for service in _services(path).values() if service["image"] in _OUR_IMAGES]
    commands = [service["command"] for service in neurons if "entrypoint" not in service]
    script = (DOCKER / "add-miner.sh").read_text()
    commands += [shlex.split(line)[2:] for line in script.splitlines() if line.startswith("exec windrow ")]
    unit = re.findall(r"^ExecStart=\S+/windrow %i$", UNIT.read_text(), re.MULTILINE)
    commands += [[role] for role in ("miner", "validator") for _ in unit]
    assert len(commands) == 6
    for command in commands:
        _parse(command)


def test_the_configuration_of_a_miner_is_eight_values_each_of_them_a_setting() -> None:
    variables = re.findall(r"^(\w+)=", EXAMPLE.read_text(), re.MULTILINE)
    assert len(variables) == _VALUES_OF_A_MINER
    shared = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}  # names that all S3 tools know
    assert [name for name in variables if name not in shared and not _is_known(name)] == []


def test_a_variable_that_is_no_setting_is_noticed() -> None:
    assert not _is_known("WINDROW_BUKET")


def test_the_script_for_minio_makes_two_keys_a_bucket_and_shows_no_secret(tmp_path: Path) -> None:
    """With a stand-in for MinIO's client that writes down what it is told."""
    said = tmp_path / "said"
    for name, body in {"mc": f'echo "$@" >> {said}', "chown": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "minio-buckets.sh"
    script.write_text(
        (DOCKER / script.name).read_text().replace("/keys", str(tmp_path)).replace("/tmp/$", f"{tmp_path}/$")
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MINIO_ROOT_USER": "windrow", "MINIO_ROOT_PASSWORD": "given"}
    for _ in range(2):  # the second time there is nothing left to do
        done = _run("sh", script, "guest-1", **environment)
        assert (done.returncode, done.stderr) == (0, "")
    settings = tmp_path / "guest-1.toml"
    values = tomllib.loads(settings.read_text())
    assert settings.stat().st_mode & 0o777 == 0o600
    assert all(_is_known(f"{ENVIRONMENT_PREFIX}{name.upper()}") for name in values)
    assert len({values["write_secret"], values["read_secret"]}) == 2
    told = said.read_text()
    assert told.count("mb --ignore-existing minio/guest-1") == 1
    assert not any(secret in told for secret in (values["write_secret"], values["read_secret"], "given"))
    read, write = (json.loads((tmp_path / f"guest-1-{kind}.json").read_text()) for kind in ("read", "write"))
    assert read["Statement"][0]["Action"] == ["s3:GetObject", "s3:ListBucket"]
    assert write["Statement"][0]["Resource"] == read["Statement"][0]["Resource"]


def test_systemd_accepts_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    analyze = _tool("systemd-analyze", "it is part of systemd")
    unit = tmp_path / "windrow@miner.service"
    unit.write_text(UNIT.read_text().replace("/opt/windrow/bin/windrow %i", "/bin/true"))  # which exists everywhere
    verified = _run(analyze, "verify", unit)
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = _run(analyze, "security", "--offline=true", "--no-pager", unit)
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", rated.stdout)
    assert exposure
    assert float(exposure[1]) < _EXPOSURE_LIMIT


def test_the_unit_is_not_started_again_for_what_only_a_person_can_mend() -> None:
    codes = re.search(r"^RestartPreventExitStatus=(.+)$", UNIT.read_text(), re.MULTILINE)
    assert codes
    table = (ROOT / "docs" / "operations.md").read_text()
    for code in codes[1].split():
        assert re.search(rf"^\| {code} \|", table, re.MULTILINE)
