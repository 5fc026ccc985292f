"""Real processes, signals and clocks: one small network that is founded, resumed, joined, hurt and resumed again.

Nothing here says how fast anything must be. Every wait ends as soon as what it waits for is there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bittensor.wallet import Wallet

from neurons import cli
from neurons.folder import Charter, Member, Places, is_held, require_network
from neurons.founding import Wishes, plan
from neurons.leaderboard.view import PeerRow, View, Watcher
from neurons.localnet import Network, names
from neurons.onlooker import onlooker
from neurons.settings import load_viewpoint
from neurons.status import NodeStatus, read_status, write_status
from protocol.window import deadlines
from tests.neurons.processes import Process, wait_for

pytestmark = pytest.mark.usefixtures("no_process_survives")

KEYS = ["windows", "seconds", "held_out_loss", "accepted", "rejected", "roots", "peers"]
PEER_KEYS = {"uid", "hotkey", "role", "rating", "unique_work", "sync", "final", "weight", "incentive"}
MEMBERS = {"validator-1", "miner-1", "miner-2", "freerider"}


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What a command that only reads prints with `--json`."""
    assert cli.main([*map(str, arguments), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def judged(folder: Path) -> dict[str, PeerRow]:
    """The rows of the leaderboard by name."""

    async def read() -> View:
        async with onlooker(load_viewpoint({"dir": folder}, {}, folder)) as look:
            return await Watcher(look.run, look.chain, look.open_bucket).refresh()

    charter = require_network(folder)
    called = names(folder, charter)
    return {called[row.hotkey]: row for row in asyncio.run(read()).rows}


def pid_of(folder: Path, name: str) -> int:
    status = read_status(Places(folder).node(name))
    assert status is not None
    return status.pid


def held_in(folder: Path) -> set[str]:
    """What of a network some process still holds: its members' folders and its own."""
    paths = [folder, *(Places(folder).node(name) for name in MEMBERS)]
    return {path.name for path in paths if is_held(path)}


@pytest.fixture(scope="module")
def flags(tiny: Path, text: Path) -> list[object]:
    """What a network is founded with; the same flags resume it."""
    own = ["--miners", 2, "--validators", 1, "--cheats", "freerider", "--preset", tiny, "--text", text]
    return [*own, "--block-seconds", 0.4, "--json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("localnet") / "net"


@pytest.fixture(scope="module")
def first(folder: Path, flags: list[object]) -> Process:
    """The first `windrow up`, which founds the network and ends after three windows."""
    process = Process("up", "--dir", folder, *flags, "--windows", 3)
    assert process.end() == 0, "".join(process.err)
    return process


@pytest.fixture(scope="module")
def guest(folder: Path, first: Process) -> Iterator[Process]:
    """A miner started by hand from another shell, while nothing runs yet."""
    wallet = Wallet("bob", "default", str(Places(folder).wallets))
    wallet.create_new_coldkey(use_password=False, suppress=True)
    wallet.create_new_hotkey(use_password=False, suppress=True)
    process = Process("miner", "--dir", folder, "--wallet.name", "bob", "--register", "--dtype", "fp32")
    yield process
    process.popen.terminate()
    assert process.end() == 0


@pytest.fixture(scope="module")
def second(folder: Path, flags: list[object], guest: Process) -> Process:
    """The second `windrow up`: a guest comes, a miner is killed, somebody else tries the folder, then Ctrl-C."""
    process = Process("up", "--dir", folder, *flags)
    process.says("joined: bob")
    intruder = Process("up", "--dir", folder, "--json")
    twin = Process("miner", "--dir", folder, "--wallet.name", "bob")
    wait_for(lambda: "bob" in judged(folder), "the judgement of bob")
    os.kill(pid_of(folder, "miner-2"), signal.SIGKILL)
    process.says("miner-2 was killed by SIGKILL")
    assert (intruder.end(), twin.end()) == (4, 4)
    process.err += [f"intruder {''.join(intruder.err)}", f"twin {''.join(twin.err)}"]
    seen = sum("held-out loss" in line for line in process.err)
    wait_for(lambda: sum("held-out loss" in line for line in process.err) > seen + 1, "two more windows")
    process.press_ctrl_c()
    assert process.end() == 130, "".join(process.err)
    return process


# --- a network as its files tell it -----------------------------------------------------------------------


def quiet_network(folder: Path, reached: dict[str, int], target: int | None = None) -> Network:
    """A network of miners without processes; `reached` is the newest window of each, -1 for one that never joined."""
    members = tuple(Member(name=name, role="miner", hotkey=name) for name in reached)
    for name, window in reached.items():
        Places(folder).node(name).mkdir(parents=True)
        roots = {number: f"root-{number}" for number in range(max(0, window - 3), window + 1)}
        write_status(Places(folder).node(name), NodeStatus(name, "miner", 0, name, 1, window, "", 0.0, roots))
    watcher: Any = SimpleNamespace(run=plan(Wishes()).draft)
    chain: Any = None
    charter = Charter(run_digest="0" * 64, members=members, text=None)
    return Network(folder, charter, chain, watcher, target, 0.0)


def seen(newest: int | None, block: int) -> Any:
    """A view in which the windows up to `newest` have been judged."""
    return SimpleNamespace(newest=newest, block=block)


def test_roots_are_of_the_newest_window_that_all_the_living_have_reached(tmp_path: Path) -> None:
    network = quiet_network(tmp_path, {"a": 5, "b": 4, "dead": 2, "absent": -1})
    network.dead = {"dead": "was killed by SIGKILL"}
    assert network.roots() == {"a": "root-4", "b": "root-4"}


def test_roots_of_neurons_without_a_common_window_are_the_newest(tmp_path: Path) -> None:
    assert quiet_network(tmp_path, {"a": 9, "b": 2}).roots() == {"a": "root-9"}


def test_nobody_has_a_root_before_somebody_has_joined(tmp_path: Path) -> None:
    assert quiet_network(tmp_path, {"a": -1}).roots() == {}


def test_a_network_is_finished_when_the_last_window_is_judged_and_applied_by_all_the_living(tmp_path: Path) -> None:
    network = quiet_network(tmp_path, {"a": 3, "b": 3, "dead": 1}, target=3)
    network.dead = {"dead": "was killed by SIGKILL"}
    assert not network.is_finished(seen(None, 0))
    assert not network.is_finished(seen(1, 20))
    assert network.is_finished(seen(2, 30))


def test_who_lags_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    network = quiet_network(tmp_path, {"a": 3, "stuck": 2}, target=3)
    close = deadlines(3, network.watcher.run.time).close_block
    assert not network.is_finished(seen(2, close - 1))
    assert network.is_finished(seen(2, close))


def test_a_network_without_a_number_of_windows_goes_on(tmp_path: Path) -> None:
    assert not quiet_network(tmp_path, {"a": 99}).is_finished(seen(98, 9999))


# --- founding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["founding a network", "cutting the text"])
def test_ctrl_c_while_a_network_is_founded_leaves_nothing(tmp_path: Path, flags: list[object], moment: str) -> None:
    process = Process("up", "--dir", tmp_path / "net", *flags)
    process.says(moment)
    process.press_ctrl_c()
    assert process.end() == 130
    assert process.out == []
    assert os.listdir(tmp_path) == []


def test_what_goes_on_is_said_before_the_first_window(first: Process) -> None:
    told = "".join(first.err).split("window 0:")[0]
    for step in ("founding a network", "reading text", "training a tokenizer", "making wallets", "to start", "joined"):
        assert step in told


# --- the first run ----------------------------------------------------------------------------------------


def test_it_ends_with_one_json_object(first: Process) -> None:
    table = first.table()
    assert list(table)[: len(KEYS)] == KEYS
    assert table["windows"] == 3
    assert table["seconds"] > 0
    assert table["dead"] == {}
    assert all(peer.keys() >= PEER_KEYS for peer in table["peers"])
    assert {peer["name"]: peer["role"] for peer in table["peers"]} == {
        "miner-1": "miner",
        "miner-2": "miner",
        "freerider": "freerider",
    }


def test_training_helped_and_all_neurons_hold_one_root(first: Process) -> None:
    table = first.table()
    before, after = table["held_out_loss"]
    assert after < before
    assert table["accepted"] > 0
    assert table["roots"].keys() == MEMBERS
    assert len(set(table["roots"].values())) == 1


# --- the second run ---------------------------------------------------------------------------------------


def test_the_same_command_resumes_the_network(second: Process, first: Process) -> None:
    assert second.err[0].startswith("resuming the network")
    table = second.table()
    assert table["windows"] > first.table()["windows"]
    assert table["held_out_loss"][0] == first.table()["held_out_loss"][0]


def test_a_miner_started_by_hand_is_judged_and_holds_the_same_root(second: Process) -> None:
    table = second.table()
    assert table["roots"].keys() == MEMBERS - {"miner-2"} | {"bob"}
    assert len(set(table["roots"].values())) == 1
    bob = next(peer for peer in table["peers"] if peer["name"] == "bob")
    assert (bob["uid"], bob["role"]) == (4, "miner")


def test_a_killed_miner_is_named_and_the_others_go_on(second: Process) -> None:
    assert list(second.table()["dead"]) == ["miner-2"]
    death = next(i for i, line in enumerate(second.err) if "miner-2 was killed by SIGKILL" in line)
    assert any("held-out loss" in line for line in second.err[death:])


def test_ctrl_c_ends_with_a_summary_and_leaves_no_lock(second: Process, folder: Path) -> None:
    assert any("summary" in line for line in second.err)
    assert held_in(folder) == set()


def test_a_second_up_on_a_busy_folder_is_refused(second: Process) -> None:
    assert any(line.startswith("intruder windrow: another `windrow up` is running") for line in second.err)


def test_a_neuron_runs_once(second: Process) -> None:
    assert any(line.startswith("twin windrow: bob is running already") for line in second.err)


def test_other_commands_give_the_same_numbers(
    second: Process, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, board = second.table(), ask(capsys, "leaderboard", "--dir", folder)
    assert {key: board[key] for key in board if key != "peers"} == {k: table[k] for k in board if k != "peers"}
    for row, peer in zip(board["peers"], table["peers"], strict=True):
        assert row == {key: peer[key] for key in row}
        explained = ask(capsys, "explain", row["uid"], "--dir", folder)
        scores = ("hotkey", "rating", "unique_work", "sync", "final", "weight", "incentive")
        assert {key: explained[key] for key in scores} == {key: row[key] for key in scores}


def test_a_flag_that_contradicts_the_network_is_refused(
    second: Process, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["up", "--dir", str(folder), "--miners", "9", "--json"]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "--miners 2, not 9" in printed.err


# --- worse things -----------------------------------------------------------------------------------------


def test_a_network_survives_kill_9_and_ends_without_its_only_validator(second: Process, folder: Path) -> None:
    hotkey = Places(folder).wallets / "miner-1" / "hotkeys" / "default"
    hotkey.rename(hotkey.with_name("elsewhere"))
    killed = Process("up", "--dir", folder, "--json")
    killed.says("miner-1 ended with exit code 5: there is no hotkey 'default' in wallet 'miner-1'")
    killed.says("running in")
    killed.popen.kill()
    assert killed.end() == -signal.SIGKILL
    assert held_in(folder) == set()

    last = Process("up", "--dir", folder, "--json")
    last.says("running in")
    os.kill(pid_of(folder, "validator-1"), signal.SIGKILL)
    assert last.end() == 7
    assert "no validator is left: validator-1 was killed by SIGKILL" in last.err[-1]
    assert last.table()["dead"].keys() == {"validator-1", "miner-1"}
    assert held_in(folder) == set()
