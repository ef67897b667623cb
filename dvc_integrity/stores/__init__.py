"""Places where bytes lie, behind one small protocol.

A store turns entries of a manifest into observations and knows nothing of good and bad. The
workspace is a folder of files under their own names; an object store (the cache, a remote)
keeps immutable objects under their digests; a versioned store (a version-aware remote) keeps
versions of files under their own names. Only ``ObjectStore.put`` writes to a store; reading
keeps digests of the blocks of large files beside it.
"""

from dvc_integrity.stores.connection import Connection
from dvc_integrity.stores.objects import ObjectStore, StoredObject
from dvc_integrity.stores.protocol import Hints, Presence, SourceError, Store
from dvc_integrity.stores.versioned import VersionedStore
from dvc_integrity.stores.workspace import DEFAULT_LINKS, Workspace

__all__ = [
    "DEFAULT_LINKS",
    "Connection",
    "Hints",
    "ObjectStore",
    "Presence",
    "SourceError",
    "Store",
    "StoredObject",
    "VersionedStore",
    "Workspace",
]
