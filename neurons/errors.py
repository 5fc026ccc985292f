"""Every error the neurons raise on purpose, in one tree, each saying when and with which exit code."""

from __future__ import annotations

from protocol.errors import ChainError, ProtocolError
from storage.errors import StorageError


class NeuronError(Exception):
    """Root of the tree. `exit_code` is what a command ends with when this error reaches the user."""

    exit_code: int = 1


class ConfigError(NeuronError):
    """`run.toml` or a node's settings name something that does not exist or cannot work."""

    exit_code = 2


class TextError(NeuronError):
    """There is too little text, or a file of it cannot be read."""

    exit_code = 3


class ModelError(NeuronError):
    """An array does not have the size, type or memory layout that the run's model needs."""


class FolderError(NeuronError):
    """A folder cannot be used: another process holds it, it is no network's, or of another network than the flags
    ask for."""

    exit_code = 4


class WalletError(NeuronError):
    """A wallet or one of its keys is not where the settings say, or cannot be opened."""

    exit_code = 5


class NodeError(NeuronError):
    """A neuron cannot take part: not registered, no validator to follow, no checkpoint to start from."""

    exit_code = 6


class Overtaken(NeuronError):
    """The state of a node is on a branch of the ledger that the others have left. The node goes back by itself."""


class ContradictionError(NodeError):
    """More than half of all stake has made two manifests final that exclude each other."""


class NetworkError(NeuronError):
    """A network on this machine cannot go on: the process of its only validator died."""

    exit_code = 7


class NotJudged(NeuronError):
    """There are no receipts of this window, or none of this peer in it."""

    exit_code = 8


class RadosgwError(NeuronError):
    """The S3 server of this machine cannot be started or does not do what it is asked: it is not installed, its port
    is taken, or one of its processes ended; the end of its log is in the sentence."""

    exit_code = 9


EXPECTED_ERRORS = (NeuronError, ProtocolError, StorageError)
"""What ends a command with one sentence instead of a traceback."""

_CHAIN_EXIT_CODE = 6
_RUN_EXIT_CODE = 2
_STORAGE_EXIT_CODE = 9


def exit_code(error: Exception) -> int:
    """What a command ends with when this expected error reaches the user (docs/operations.md)."""
    if isinstance(error, NeuronError):
        return error.exit_code
    if isinstance(error, ChainError):
        return _CHAIN_EXIT_CODE
    return _RUN_EXIT_CODE if isinstance(error, ProtocolError) else _STORAGE_EXIT_CODE
