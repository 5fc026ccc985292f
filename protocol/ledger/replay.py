"""Applying manifests: the state machine whose log is the ledger (protocol §12, §13)."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import LedgerError
from protocol.ledger.manifest import Manifest
from protocol.ledger.state import State
from protocol.run import Run
from protocol.sparseloco.aggregate import outer_step
from protocol.sparseloco.payload import Payload


def apply_manifest(state: State, run: Run, manifest: Manifest, payloads: Sequence[Payload]) -> None:
    """Take `state` from window W to W + 1 in place. `payloads` are those the manifest names, in its order.

    The manifest must have passed `check_manifest`. Raises `LedgerError`, before anything is changed, when a
    payload is not the one that is named.
    """
    if manifest.window != state.window:
        raise LedgerError(f"manifest {manifest.window} cannot follow a state at window {state.window}")
    named = [(c.hotkey, c.payload_digest) for c in manifest.contributions]
    given = [(p.header.hotkey, p.digest) for p in payloads]
    if named != given:
        raise LedgerError(f"manifest {manifest.window} names payloads {named}, got {given}")
    outer_step(state.theta, [payload.update for payload in payloads], run.sparseloco, state.window)
    state.window += 1
    state.previous = manifest.digest()
