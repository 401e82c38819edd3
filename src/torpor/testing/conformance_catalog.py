"""Conformance: tenants, API keys and agent versions."""
# ruff: noqa: S101 - these are tests

import asyncio

import pytest

from torpor import errors, ids
from torpor.storage import records, store
from torpor.testing import store_samples


class Catalog:
    """What is registered is found again, by its own tenant alone."""

    async def test_tenants_are_known_once_created(self, store: store.Store) -> None:
        """Creating a tenant twice is creating it once."""
        tenant = ids.random_id("tenant")
        assert not await store.catalog.tenant_exists(tenant)
        await store.catalog.create_tenant(tenant, at_ms=1)
        await store.catalog.create_tenant(tenant, at_ms=2)
        assert await store.catalog.tenant_exists(tenant)
        found = await store.catalog.tenants()
        assert found.count(tenant) == 1
        assert found == sorted(found)

    async def test_shared_storage_is_known_once_proposed(self, store: store.Store) -> None:
        """The first id proposed stays; asking proposes nothing."""
        first = await store.catalog.storage()
        known = await store.catalog.storage("storage-1")
        assert known == first or (first, known) == ("", "storage-1")
        assert await store.catalog.storage("storage-2") == known
        assert await store.catalog.storage() == known

    async def test_api_key_stands_until_revoked(self, store: store.Store) -> None:
        """A key is found by its digest, and forgotten when revoked."""
        tenant, digest = ids.random_id("tenant"), ids.random_id("digest")
        key = records.ApiKey(tenant=tenant, operator=False, label="laptop", created_ms=1)
        with pytest.raises(errors.TenantNotFound):
            await store.catalog.put_key(digest, key)
        assert await store.catalog.api_key(digest) is None
        await store.catalog.create_tenant(tenant, at_ms=1)
        await store.catalog.put_key(digest, key)
        assert await store.catalog.api_key(digest) == key
        assert await store.catalog.revoke_key(digest)
        assert not await store.catalog.revoke_key(digest)
        assert await store.catalog.api_key(digest) is None

    async def test_versions_are_numbered(self, store: store.Store) -> None:
        """A new digest is the next version, the newest one's digest is no new version."""
        tenant = ids.random_id("tenant")
        first = await store.catalog.register(tenant, store_samples.agent_version("nb", "d-1"))
        again = await store.catalog.register(tenant, store_samples.agent_version("nb", "d-1"))
        second = await store.catalog.register(tenant, store_samples.agent_version("nb", "d-2"))
        back = await store.catalog.register(tenant, store_samples.agent_version("nb", "d-1"))
        assert [v.version for v in (first, again, second, back)] == [1, 1, 2, 3]
        assert again == first
        assert await store.catalog.agent(tenant, "nb", 2) == second
        assert await store.catalog.agent(tenant, "nb") == back

    async def test_registrations_at_once_get_own_numbers(self, store: store.Store) -> None:
        """Registering is atomic: no number is given twice, none is left out."""
        tenant = ids.random_id("tenant")
        made = await asyncio.gather(
            *(
                store.catalog.register(tenant, store_samples.agent_version("nb", f"d-{i}"))
                for i in range(8)
            )
        )
        assert sorted(version.version for version in made) == list(range(1, 9))
        for version in made:
            assert await store.catalog.agent(tenant, "nb", version.version) == version

    async def test_unknown_agent_is_not_found(self, store: store.Store) -> None:
        """An unknown name, an unknown version and another tenant's agent are not found."""
        tenant = ids.random_id("tenant")
        with pytest.raises(errors.AgentNotFound):
            await store.catalog.agent(tenant, "nb")
        await store.catalog.register(tenant, store_samples.agent_version("nb", "d-1"))
        with pytest.raises(errors.AgentNotFound):
            await store.catalog.agent(tenant, "nb", 2)
        with pytest.raises(errors.AgentNotFound):
            await store.catalog.agent(ids.random_id("tenant"), "nb")

    async def test_agents_are_listed_by_newest_version(self, store: store.Store) -> None:
        """The list has each agent of the tenant once."""
        tenant = ids.random_id("tenant")
        assert await store.catalog.agents(tenant) == []
        await store.catalog.register(tenant, store_samples.agent_version("zeta", "d-1"))
        await store.catalog.register(tenant, store_samples.agent_version("alpha", "d-1"))
        await store.catalog.register(tenant, store_samples.agent_version("zeta", "d-2"))
        found = [(version.name, version.version) for version in await store.catalog.agents(tenant)]
        assert found == [("alpha", 1), ("zeta", 2)]
