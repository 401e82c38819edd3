"""The states of one session, on their way out and in: sealed, and verified before decoding."""

import asyncio

from torpor import errors, limits
from torpor.storage import blobs, envelope, keyring, records


class Checkpoints:
    """Knows the newest state as it was pickled, so that one which did not change is not written."""

    def __init__(
        self, blobs: blobs.BlobStore, keys: keyring.TenantKeys, agent: records.AgentVersion
    ) -> None:
        self._blobs = blobs
        self._keys = keys
        self._agent = agent
        self._newest: bytes | None = None

    def read(
        self, reference: records.CheckpointRef | None, inline_state: bytes | None
    ) -> memoryview | None:
        """Return the verified pickle of the agent, None before the first turn. Blocks.

        Raises:
            CheckpointCorrupt, BlobCorrupt, BlobMissing, StorageUnavailable
            CheckpointIncompatible: another Python minor wrote it.
        """
        if reference is None:
            return None
        sealed = inline_state
        if not reference.inline:
            sealed = self._blobs.get(
                self._keys.tenant, reference.state, bytes_max=envelope.ENVELOPE_BYTES_MAX
            )
        if sealed is None:
            raise errors.CheckpointCorrupt(
                "the checkpoint that the head names is not in the store",
                session=reference.origin,
            )
        _, payload = envelope.open(sealed, reference, self._keys)
        self._newest = bytes(payload)
        return payload

    async def seal(
        self, payload: bytes | None, head: records.Head, version: int
    ) -> tuple[records.CheckpointRef | None, bytes | None]:
        """Store a state that changed; returns what the head is to say of it, and what lies there.

        Raises:
            StorageFull, StorageUnavailable
        """
        if payload is None or payload == self._newest:
            return None, None
        header = envelope.Header(
            tenant=head.key.tenant,
            origin=head.key.session,
            epoch=head.epoch,
            version=version,
            agent=self._agent.name,
            agent_version=self._agent.version,
        )
        sealed = envelope.seal(header, payload, self._keys)
        inline = len(sealed) <= limits.INLINE_STATE_BYTES_MAX
        if not inline:
            await asyncio.to_thread(self._upload, sealed)
        return envelope.reference(header, sealed, inline=inline), sealed if inline else None

    def committed(self, payload: bytes) -> None:
        """Take note of the state that the newest commit names."""
        self._newest = payload

    def _upload(self, data: bytes) -> None:
        with self._blobs.upload(self._keys.tenant) as upload:
            upload.put(data)
