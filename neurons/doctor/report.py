"""Making all checks, one after the other, and showing what they found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop
from rich.table import Table
from rich.text import Text

from neurons.doctor import machine, network
from neurons.doctor.finding import Check, Finding, Missing, State, fail, skipped
from neurons.doctor.patient import Patient
from neurons.doctor.verdict import verdict
from neurons.errors import EXPECTED_ERRORS
from neurons.leaderboard.words import plain
from neurons.process import transports
from neurons.settings import Reading

_COLOURS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red", State.SKIPPED: "dim"}

CHECKS = (
    Check("settings", 5, network.settings),
    Check("wallet", 10, network.wallet),
    Check("run", 30, network.run),
    Check("chain", 60, network.chain),
    Check("window", 30, network.window),
    Check("registration", 30, network.registration),
    Check("balance", 30, network.balance),
    Check("bucket write", 60, network.bucket_write),
    Check("bucket read", 60, network.bucket_read),
    Check("read key", 60, network.read_key),
    Check("bucket speed", 120, network.bucket_speed),
    Check("commitment", 30, network.commitment),
    Check("clock", 30, network.clock),
    Check("dataset", 60, network.dataset),
    Check("gpu", 10, machine.gpu),
    Check("memory", 60, machine.memory),
    Check("disk", 30, machine.disk),
    Check("compute", 90, machine.compute),
    Check("compression", 90, machine.compression),
    Check("verdict", 10, verdict),
)
"""In order: what a check needs is looked at before it. Speeds are measured one at a time."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What each check found, by its name."""

    findings: dict[str, Finding]

    @property
    def worst(self) -> State:
        """The state that decides how the command ends."""
        return max((finding.state for finding in self.findings.values()), key=lambda state: state.value)

    @property
    def exit_code(self) -> int:
        """0 when nothing is wrong, else that of the worst state."""
        return max(0, self.worst.value)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        checks = [
            {"name": name, "state": found.state.word, "sentence": found.sentence, "figures": dict(found.figures)}
            for name, found in self.findings.items()
        ]
        return {"state": self.worst.word, "checks": checks}

    def table(self) -> Table:
        """For people."""
        table = Table(show_edge=False, pad_edge=False)
        for heading in ("check", "", "what was found, and what to do"):
            table.add_column(heading, overflow="fold")
        for name, found in self.findings.items():
            # What a store or a chain said may be in a sentence, so no control character may pass.
            table.add_row(name, Text(found.state.word, _COLOURS[found.state]), Text(plain(found.sentence)))
        return table


def run_doctor(reading: Reading, say: Callable[[str], None]) -> Diagnosis:
    """Examine a node with these settings."""

    async def run() -> Diagnosis:
        async with transports(reading.settings) as ways:
            return await diagnose(Patient(reading, ways), say)

    return uvloop.run(run())


async def diagnose(patient: Patient, say: Callable[[str], None], checks: Sequence[Check] = CHECKS) -> Diagnosis:
    """Make every check; `say` is told the name of each before it begins."""
    try:
        for check in checks:
            say(check.name)
            patient.findings[check.name] = await _made(check, patient)
    finally:
        await patient.close()
    return Diagnosis(dict(patient.findings))


async def _made(check: Check, patient: Patient) -> Finding:
    """What the check finds; whatever goes wrong in it ends here, so that it never stops the next one."""
    try:
        async with asyncio.timeout(check.seconds):
            return await check.examine(patient)
    except Missing as missing:
        return skipped(f"needs {missing}")
    except TimeoutError:
        return fail(f"nothing came of it in {check.seconds:g} s: see what it waits for, and look again")
    except EXPECTED_ERRORS as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{error.filename or 'this machine'}: {error.strerror or error}")
