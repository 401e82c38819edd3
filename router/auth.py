"""Who makes a call, told by its API key."""

import hashlib
from collections.abc import Iterable

import msgspec

from torpor import clock, errors, ids
from torpor.router import call, lru
from torpor.storage import records, store

#: How long a key or tenant is believed without looking again: a revoked key works on for as long.
TRUST_S = 5.0
#: Keys in use at one gateway.
KEYS_KEPT_MAX = 10_000

TENANT_HEADER = "x-torpor-tenant"


class _Trusted(msgspec.Struct, frozen=True):
    """What a key stood for when it was looked up."""

    key: records.ApiKey
    until_s: float


class Authenticator:
    """Looks API keys up, and remembers them for a few seconds. Keys themselves are not kept."""

    def __init__(self, catalog: store.Catalog, time: clock.Clock) -> None:
        self._catalog = catalog
        self._clock = time
        self._trusted: lru.Lru[str, _Trusted] = lru.Lru(KEYS_KEPT_MAX)
        self._tenants: lru.Lru[str, float] = lru.Lru(KEYS_KEPT_MAX)

    async def identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> call.Identity:
        """Return who makes a call with this metadata.

        Raises:
            ApiKeyMissing, ApiKeyInvalid
            OperatorOnly: the call names another tenant than the key's.
            TenantNotFound
            StoreUnavailable
        """
        bearer = named = ""
        for name, value in metadata:
            if name == "authorization":
                bearer = str(value)
            elif name == TENANT_HEADER:
                named = str(value)
        key = await self._key(bearer)
        tenant = named or key.tenant
        if tenant != key.tenant:
            if not key.operator:
                raise errors.OperatorOnly(
                    "only an operator may name another tenant", tenant=key.tenant
                )
            await self._demand_tenant(tenant)
        return call.Identity(tenant=tenant, operator=key.operator)

    async def _key(self, bearer: str) -> records.ApiKey:
        scheme, _, secret = bearer.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise errors.ApiKeyMissing
        digest = hashlib.sha256(secret.encode()).hexdigest()
        now_s = self._clock.monotonic_s()
        trusted = self._trusted.get(digest)
        if trusted is not None and now_s < trusted.until_s:
            return trusted.key
        key = await self._catalog.api_key(digest)
        if key is None:
            self._trusted.drop(digest)
            raise errors.ApiKeyInvalid
        self._trusted.put(digest, _Trusted(key, now_s + TRUST_S))
        return key

    async def _demand_tenant(self, tenant: str) -> None:
        ids.check_name("tenant", tenant)
        now_s = self._clock.monotonic_s()
        until_s = self._tenants.get(tenant)
        if until_s is not None and now_s < until_s:
            return
        if not await self._catalog.tenant_exists(tenant):
            raise errors.TenantNotFound(tenant=tenant)
        self._tenants.put(tenant, now_s + TRUST_S)
