"""Every error the storage room raises, in one tree, each saying when."""

from __future__ import annotations


class StorageError(Exception):
    """Root of the tree. Catch this to catch anything the storage room raises on purpose."""


class NotFound(StorageError):
    """There is no object under this key."""


class AlreadyExists(StorageError):
    """A conditional put found an object under the key."""


class TooLarge(StorageError):
    """An object is larger than the limit its reader gave before the request."""


class BadKey(StorageError):
    """A key is empty, too long, or holds a part that could leave the bucket."""


class Unavailable(StorageError):
    """The store did not answer, or answered with an error that is not about the object."""


class AccessRefused(Unavailable):
    """The store knows what was asked and does not allow it to this access key, or does not accept the key at all."""


class ForbiddenAddress(Unavailable):
    """A host is not one of the public internet, where alone a peer may send this node; nothing was connected."""


class WrongSize(StorageError):
    """An object does not have the size that was known before it was asked for."""


class DiskUnusable(StorageError):
    """A file of this node's own cannot be written: its disk is full or read-only. No peer's fault."""


class DamagedFile(DiskUnusable):
    """A file of this node's own does not hold what was written into it."""


class NotSupported(StorageError):
    """This kind of bucket cannot do what was asked of it, at no time and for nobody."""


class BadCredentials(StorageError):
    """An access key id or its secret is not one."""


class BadLocation(StorageError):
    """A commitment does not say where a bucket is, in a form this node accepts."""


class SealError(StorageError):
    """A sealed shard does not open with this key, index and associated data."""


class DatasetError(StorageError):
    """A dataset is malformed, does not match its digest, or is too small for what is asked of it."""


class CheckpointError(StorageError):
    """A checkpoint is incomplete, malformed, or does not match the digests in its index."""
