"""Tenants, API keys and agent versions in Redis: a hash each."""

import msgspec

from torpor import errors
from torpor.storage import keys, record_codec, records, redis_wire, scripts

_encode = msgspec.msgpack.Encoder().encode
_decode_key = msgspec.msgpack.Decoder(records.ApiKey).decode
_decode_version = msgspec.msgpack.Decoder(records.AgentVersion).decode


class RedisCatalog:
    """`torpor.storage.store.Catalog` on Redis."""

    def __init__(self, wire: redis_wire.Wire) -> None:
        self._wire = wire

    async def create_tenant(self, tenant: str, *, at_ms: int) -> None:
        """Make a tenant known. Idempotent."""
        await self._wire.write(("HSETNX", keys.TENANTS, tenant, at_ms))

    async def tenants(self) -> list[str]:
        """Return all tenants by name."""
        (names,) = await self._wire.read(("HKEYS", keys.TENANTS))
        return sorted(name.decode() for name in names)

    async def tenant_exists(self, tenant: str) -> bool:
        """Whether the tenant is known."""
        (known,) = await self._wire.read(("HEXISTS", keys.TENANTS, tenant))
        return bool(known)

    async def storage(self, proposed: str = "") -> str:
        """Return the id of the shared storage; `proposed` becomes it if none is known."""
        if proposed:
            await self._wire.write(("SET", keys.STORAGE, proposed, "NX"))
        (known,) = await self._wire.read(("GET", keys.STORAGE))
        return "" if known is None else str(known.decode())

    async def put_key(self, key_digest: str, key: records.ApiKey) -> None:
        """Store what an API key stands for under the SHA-256 of the key."""
        if not await self.tenant_exists(key.tenant):
            raise errors.TenantNotFound(tenant=key.tenant)
        await self._wire.write(("HSET", keys.API_KEYS, key_digest, _encode(key)))

    async def api_key(self, key_digest: str) -> records.ApiKey | None:
        """Return what the key stands for."""
        (value,) = await self._wire.read(("HGET", keys.API_KEYS, key_digest))
        return None if value is None else _decode_key(value)

    async def revoke_key(self, key_digest: str) -> bool:
        """Forget a key; False if it was unknown."""
        (removed,) = await self._wire.write(("HDEL", keys.API_KEYS, key_digest))
        return bool(removed)

    async def register(self, tenant: str, version: records.AgentVersion) -> records.AgentVersion:
        """Add a version after the newest one; the newest one itself if the digest is equal."""
        ((number, stored),) = await scripts.script("register").run(
            self._wire,
            (keys.agents(tenant),),
            (version.name, version.digest, _encode(version)),
        )
        return _version(stored, number)

    async def agent(self, tenant: str, name: str, version: int = 0) -> records.AgentVersion:
        """Return one version, the newest for 0."""
        number = version or await self._newest(tenant, name)
        (stored,) = await self._wire.read(("HGET", keys.agents(tenant), f"{name}@{number}"))
        if stored is None:
            raise errors.AgentNotFound(tenant=tenant, agent=name, version=version)
        return _version(stored, number)

    async def agents(self, tenant: str) -> list[records.AgentVersion]:
        """Return the newest version of each agent, by name."""
        (reply,) = await self._wire.read(("HGETALL", keys.agents(tenant)))
        fields = record_codec.pairs(reply)
        return [
            _version(fields[b"%b@%b" % (name, number)], int(number))
            for name, number in sorted(fields.items())
            if b"@" not in name
        ]

    async def _newest(self, tenant: str, name: str) -> int:
        (number,) = await self._wire.read(("HGET", keys.agents(tenant), name))
        return int(number or 0)


def _version(stored: bytes, number: int) -> records.AgentVersion:
    """Return the record; its number is the field's, which only the script could choose."""
    record = _decode_version(stored.partition(b"\0")[2])
    return msgspec.structs.replace(record, version=number)
