"""The file in which a miner keeps what must survive a restart: optimizer moments, error feedback, the secret key."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from neurons.durable import replaced, set_aside
from storage.errors import DiskUnusable

log = logging.getLogger(__name__)

_ERROR_FEEDBACK = "error_feedback"
_PRIVATE = 0o600


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What a miner is after the window `window`: `moments` as `InnerTrainer.state` gives them, `error` (fp32 [P]) what
    compression has left over, and `key` (32 bytes) what opens its payload."""

    window: int
    key: bytes = field(repr=False)
    moments: Mapping[str, np.ndarray]
    error: np.ndarray


def write(path: Path, run_digest: str, state: TrainingState) -> None:
    """Replace the file at `path`, which nobody but its owner may read. Raises `DiskUnusable`."""
    tensors = {**state.moments, _ERROR_FEEDBACK: state.error}
    metadata = {"run": run_digest, "window": str(state.window), "key": state.key.hex()}
    metadata["digest"] = _digest(metadata, tensors)
    for left in path.parent.glob(".tmp*"):  # safetensors writes under such a name first; a process was killed there
        left.unlink(missing_ok=True)
    with replaced(path) as partial:
        partial.touch(_PRIVATE)
        try:
            save_file(tensors, partial, metadata=metadata)
        except SafetensorError as error:
            raise DiskUnusable(f"{path} cannot be written: {error}") from error


def read(path: Path, run_digest: str) -> TrainingState | None:
    """What `write` wrote for this run; None when nothing is there, or, with a warning, when it is damaged, and then it
    is set aside."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be read and is kept as %s: %s", path, set_aside(path).name, error)
        return None
    if metadata.pop("digest", "") != _digest(metadata, tensors) or _ERROR_FEEDBACK not in tensors:
        log.warning("%s is damaged and is kept as %s: its digest does not hold", path, set_aside(path).name)
        return None
    if metadata["run"] != run_digest:
        return None
    error = tensors.pop(_ERROR_FEEDBACK)
    return TrainingState(int(metadata["window"]), bytes.fromhex(metadata["key"]), tensors, error)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> str:
    hasher = blake3(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        hasher.update(np.ascontiguousarray(tensor).view(np.uint8))
    return hasher.hexdigest()
