from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neurons import cli
from neurons.errors import EXPECTED_ERRORS, NeuronError, exit_code
from protocol.errors import ChainUnreachable, RunError
from storage.errors import NotFound

HELP = [
    "up",
    "miner",
    "validator",
    "doctor",
    "leaderboard",
    "explain",
    "audit",
    "cheat",
    "cheat copycat",
    "cheat freerider",
]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code of a command and what it printed on stderr; nothing may be on stdout."""
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    return code, printed.err


@pytest.mark.parametrize("command", HELP)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    assert f"windrow {command}" in capsys.readouterr().out


def test_help_does_not_wait_for_torch() -> None:
    script = "import sys, neurons.cli as cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("module", ["neurons.miner", "neurons.validator"])
def test_a_neuron_is_a_module_too_with_the_flags_of_bittensor(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    flags = ("wallet.name", "wallet.hotkey", "wallet.path", "netuid", "subtensor.network", "subtensor.chain_endpoint")
    assert all(f"--{flag}" in done.stdout for flag in flags)


@pytest.mark.parametrize("arguments", [["nonsense"], ["up", "--windows", "0"], ["explain"], ["cheat", "burglar"]])
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(capsys, *arguments)[0] == 2


def test_an_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert cli.main([]) == cli.EXIT_INTERRUPTED == 130


def test_each_expected_error_has_the_exit_code_that_is_documented() -> None:
    table = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for error in (*NeuronError.__subclasses__(), ChainUnreachable, RunError, NotFound):
        assert issubclass(error, EXPECTED_ERRORS)
        code = exit_code(error("a sentence"))
        assert f"\n| {code} |" in table, f"{error.__name__} ends with {code}"


@pytest.mark.parametrize("command", [["leaderboard"], ["explain", "1"], ["audit"]])
def test_a_folder_without_a_network_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    code, sentence = run(capsys, *command, "--dir", tmp_path)
    assert code == 4
    assert sentence == f"windrow: there is no network in {tmp_path}; start one with: windrow up --dir {tmp_path}\n"


def test_up_in_a_foreign_folder_is_refused_and_touches_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    code, sentence = run(capsys, "up", "--dir", tmp_path, "--json")
    assert (code, sentence.count("\n")) == (4, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "flags", [["--cheats", "burglar"], ["--preset", "huge"], ["--miners", "99"], ["--miners", "0", "--cheats", ""]]
)
def test_up_with_impossible_flags_makes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str]
) -> None:
    code, sentence = run(capsys, "up", "--dir", tmp_path / "net", *flags, "--json")
    assert (code, sentence.count("\n")) == (2, 1)
    assert not (tmp_path / "net").exists()


def test_a_neuron_without_a_network_is_told_what_to_give(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, sentence = run(capsys, "miner", "--dir", tmp_path)
    assert code == 2
    assert "run.toml cannot be read" in sentence
    assert "--dir" in sentence


def test_two_chains_are_refused_before_anything_is_opened(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, sentence = run(capsys, "miner", "--dir", tmp_path, "--subtensor.network", "finney")
    assert code == 2
    assert "leave out one of the two" in sentence
