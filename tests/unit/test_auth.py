"""API keys: how long they are believed."""

import hashlib

import pytest

from torpor import errors
from torpor.router import auth, call
from torpor.storage import memory_store, records
from torpor.testing import clock

SECRET = "secret"  # noqa: S105 - of a test
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
METADATA = (("authorization", f"Bearer {SECRET}"),)


@pytest.fixture
async def catalog() -> memory_store.MemoryCatalog:
    """A catalog with one operator's key."""
    made = memory_store.MemoryCatalog()
    for tenant in ("acme", "other"):
        await made.create_tenant(tenant, at_ms=0)
    await made.put_key(DIGEST, records.ApiKey(tenant="acme", operator=True, label="", created_ms=0))
    return made


async def test_a_revoked_key_stops_within_seconds(
    catalog: memory_store.MemoryCatalog, fake_clock: clock.FakeClock
) -> None:
    """It works on while it is believed without looking, and not a moment longer."""
    authenticator = auth.Authenticator(catalog, fake_clock)
    await authenticator.identify(METADATA)
    await catalog.revoke_key(DIGEST)
    assert (await authenticator.identify(METADATA)).tenant == "acme"
    await fake_clock.advance(auth.TRUST_S)
    with pytest.raises(errors.ApiKeyInvalid):
        await authenticator.identify(METADATA)


async def test_a_new_key_works_at_once(
    catalog: memory_store.MemoryCatalog, fake_clock: clock.FakeClock
) -> None:
    """That a key was refused a moment ago is not remembered."""
    authenticator = auth.Authenticator(catalog, fake_clock)
    await catalog.revoke_key(DIGEST)
    with pytest.raises(errors.ApiKeyInvalid):
        await authenticator.identify(METADATA)
    await catalog.put_key(
        DIGEST, records.ApiKey(tenant="acme", operator=False, label="", created_ms=0)
    )
    assert await authenticator.identify(METADATA) == call.Identity(tenant="acme", operator=False)


async def test_a_key_is_looked_up_once_in_a_while(
    catalog: memory_store.MemoryCatalog,
    fake_clock: clock.FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calls in quick succession read the store once."""
    reads = 0
    api_key = catalog.api_key

    async def counted(digest: str) -> records.ApiKey | None:
        nonlocal reads
        reads += 1
        return await api_key(digest)

    monkeypatch.setattr(catalog, "api_key", counted)
    authenticator = auth.Authenticator(catalog, fake_clock)
    for _ in range(10):
        await authenticator.identify(METADATA)
    assert reads == 1


async def test_an_operator_may_name_a_tenant(
    catalog: memory_store.MemoryCatalog, fake_clock: clock.FakeClock
) -> None:
    """The call is then about that tenant; a name that cannot be one is refused as such."""
    authenticator = auth.Authenticator(catalog, fake_clock)
    named = (*METADATA, (auth.TENANT_HEADER, "other"))
    assert await authenticator.identify(named) == call.Identity(tenant="other", operator=True)
    with pytest.raises(errors.InvalidField):
        await authenticator.identify((*METADATA, (auth.TENANT_HEADER, "no/tenant")))
