"""Proof that a folder is the deployment's shared storage, and not an empty folder in its place.

Where NFS is not mounted there is a folder all the same, and every blob seems to be missing. So the
storage has a marker with an id, and the store knows that id. Without the two agreeing nothing is
concluded from what the folder lacks, and no node takes office.
"""

import asyncio

from torpor import errors
from torpor.storage import blobs, store


async def establish(catalog: store.Catalog, storage: blobs.BlobStore) -> None:
    """Prove the storage, after making it known if no storage is: once, as a node starts.

    So a deployment that has no marker yet gets one, and of two nodes that start at once both take
    the id of whoever wrote first.

    Raises:
        StorageUnavailable: this is not the deployment's storage, or it cannot be read.
        StorageFull, StoreUnavailable, StoreReadOnly
    """
    known = await catalog.storage()
    if not known:
        known = await catalog.storage(await asyncio.to_thread(storage.mark))
    await _compare(known, storage)


async def prove(catalog: store.Catalog, storage: blobs.BlobStore) -> None:
    """Prove that what the folder lacks is lacking.

    Raises:
        StorageUnavailable: it may be the wrong folder, or it cannot be read.
        StoreUnavailable
    """
    await _compare(await catalog.storage(), storage)


async def _compare(known: str, storage: blobs.BlobStore) -> None:
    here = await asyncio.to_thread(storage.marker)
    if known and here == known:
        return
    path = storage.marker_path
    if not known:
        raise errors.StorageUnavailable(
            "the store knows no shared storage yet; start a node anew, which makes it known"
        )
    raise errors.StorageUnavailable(
        f"this is not the shared storage that the store knows: {path} "
        f"{f'holds {here!r}' if here else 'is not there'}. Mount the right folder; if this is it, "
        f"write {known!r} into that file",
        path=path,
    )
