"""What can go wrong between us and the place things are kept; one class per thing a caller can do.

A caller's own wrong value is a ``ValueError``. Everything here is the world's: an address that
leads nowhere, a store that does not answer, bytes that are not what was committed.
"""


class StorageError(Exception):
    """Something is wrong with what is stored, or with the way to it."""


class NotCommittedError(StorageError):
    """Nothing is committed under that name (yet): wait for the job, or correct the name."""


class AlreadyCommittedError(StorageError):
    """Somebody committed there first; their commit stands, so choose a new location."""


class BlobMissingError(StorageError):
    """The store answers, and holds no blob of that name."""


class DigestMismatchError(StorageError):
    """Bytes differ from what was committed; trying again does not help."""


class ManifestError(StorageError):
    """A MANIFEST.json is there but is not one that this version can read."""


class CheckpointError(StorageError):
    """A file of weights or training state is not in a format that is safe and complete to read."""


class LocationError(StorageError):
    """An address that cannot work as it is: mistyped, forbidden, or without valid credentials."""


class UnavailableError(StorageError):
    """The store did not answer, retries included; the same request may work later."""


class DatasetError(StorageError):
    """Images or labels are missing, corrupt, or not what a classifier can be trained on."""
