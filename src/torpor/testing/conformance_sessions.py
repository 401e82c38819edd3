"""Conformance: creating, reading, paging, delivering to and deleting sessions."""
# ruff: noqa: S101 - these are tests

import pytest

from torpor import errors, limits, messages
from torpor.storage import records, store
from torpor.testing import store_samples


class Sessions:
    """Sessions that nobody needs to own for it."""

    async def test_created_session_has_first_event(self, store: store.Store) -> None:
        """A new session is at commit 1 with one event, owned by nobody."""
        key = store_samples.key()
        head = await store.sessions.create(store_samples.new(key))
        assert head == await store.sessions.head(key)
        assert (head.epoch, head.nonce, head.owner, head.resident) == (0, "", None, False)
        assert (head.version, head.next_seq, head.hot_from) == (1, 2, 1)
        assert (head.checkpoint, head.manifest, head.commit_id) == (None, "", "")
        page = await store.sessions.hot(key, after=0, limit=10)
        assert [(event.seq, event.type) for event in page.events] == [(1, messages.SESSION_CREATED)]

    async def test_create_is_idempotent_by_request(self, store: store.Store) -> None:
        """The same request returns what is there, another one is refused."""
        head = await store_samples.owned(store)
        assert await store.sessions.create(store_samples.new(head.key, at_ms=1)) == head
        with pytest.raises(errors.SessionExists):
            await store.sessions.create(store_samples.new(head.key, request_id="create-2"))

    async def test_unknown_session_is_not_found(self, store: store.Store) -> None:
        """Each call on a session that never was says so, or returns nothing."""
        key = store_samples.key()
        with pytest.raises(errors.SessionNotFound):
            await store.sessions.head(key)
        with pytest.raises(errors.SessionNotFound):
            await store.sessions.hot(key, after=0, limit=1)
        with pytest.raises(errors.SessionNotFound):
            await store.sessions.enqueue(key, store_samples.item("r-1"))
        with pytest.raises(errors.SessionNotFound):
            await store.sessions.delete(key)
        assert await store.sessions.inbox(key) == []
        assert await store.sessions.outcome(key, "r-1") is None

    async def test_deleting_what_is_not_there_leaves_no_trace(self, store: store.Store) -> None:
        """A session made after a delete that found none is listed as any other."""
        key = store_samples.key()
        with pytest.raises(errors.SessionNotFound):
            await store.sessions.delete(key)
        head = await store.sessions.create(store_samples.new(key))
        assert await store.sessions.page(key.tenant, after="", limit=9) == ([head], "")

    async def test_tenants_never_meet(self, store: store.Store) -> None:
        """One session id in two tenants is two sessions."""
        mine, theirs = store_samples.key("same"), store_samples.key("same")
        await store_samples.owned(store, mine)
        with pytest.raises(errors.SessionNotFound):
            await store.sessions.head(theirs)
        head = await store.sessions.create(store_samples.new(theirs))
        await store.sessions.enqueue(mine, store_samples.item("r-1"))
        assert await store.sessions.inbox(theirs) == []
        assert await store.sessions.outcome(theirs, "r-1") is None
        await store.sessions.delete(mine)
        assert await store.sessions.head(theirs) == head
        assert await store.sessions.page(theirs.tenant, after="", limit=9) == ([head], "")
        assert await store.sessions.page(mine.tenant, after="", limit=9) == ([], "")

    async def test_pages_are_in_order_of_creation(self, store: store.Store) -> None:
        """Pages go on where they ended, also within one millisecond and after new sessions."""
        tenant = store_samples.key().tenant
        made = [("b", 5), ("a", 5), ("c", 5), ("z", 1), ("y", 9)]
        for session, at_ms in made:
            key = records.SessionKey(tenant, session)
            await store.sessions.create(store_samples.new(key, at_ms=at_ms))
        heads, after = await store.sessions.page(tenant, after="", limit=2)
        seen = [head.key.session for head in heads]
        await store.sessions.create(store_samples.new(records.SessionKey(tenant, "early"), at_ms=0))
        while after:
            heads, after = await store.sessions.page(tenant, after=after, limit=2)
            seen += [head.key.session for head in heads]
        assert seen == ["z", "a", "b", "c", "y"]

    async def test_page_leaves_deleted_sessions_out(self, store: store.Store) -> None:
        """A deleted session is on no page, and the token of a deleted one still leads on."""
        tenant = store_samples.key().tenant
        keys = [records.SessionKey(tenant, name) for name in ("a", "b", "c")]
        for at_ms, key in enumerate(keys):
            await store.sessions.create(store_samples.new(key, at_ms=at_ms))
        _, after = await store.sessions.page(tenant, after="", limit=1)
        await store.sessions.delete(keys[0])
        heads, _ = await store.sessions.page(tenant, after=after, limit=9)
        assert [head.key for head in heads] == keys[1:]
        heads, _ = await store.sessions.page(tenant, after="", limit=9)
        assert [head.key for head in heads] == keys[1:]

    async def test_inbox_takes_a_request_once(self, store: store.Store) -> None:
        """A repeated delivery is known and not appended; another body under its id is refused."""
        head = await store_samples.owned(store)
        first = await store.sessions.enqueue(head.key, store_samples.item("r-1"))
        assert (first.length, first.known) == (1, None)
        await store.sessions.enqueue(head.key, store_samples.item("r-2"))
        again = await store.sessions.enqueue(head.key, store_samples.item("r-1"))
        pending = records.Outcome(body_digest="digest-1", state=records.OutcomeState.PENDING)
        assert (again.length, again.known) == (2, pending)
        assert await store.sessions.outcome(head.key, "r-1") == pending
        with pytest.raises(errors.RequestIdReused):
            await store.sessions.enqueue(head.key, store_samples.item("r-1", digest="other"))
        waiting = await store.sessions.inbox(head.key)
        assert waiting == [store_samples.item("r-1"), store_samples.item("r-2")]

    async def test_inbox_is_bounded(self, store: store.Store) -> None:
        """One item more than `INBOX_MAX` is refused and leaves no trace."""
        head = await store_samples.owned(store)
        for i in range(limits.INBOX_MAX):
            await store.sessions.enqueue(head.key, store_samples.item(f"r-{i}"))
        with pytest.raises(errors.InboxFull):
            await store.sessions.enqueue(head.key, store_samples.item("one-more"))
        assert await store.sessions.outcome(head.key, "one-more") is None
        known = await store.sessions.enqueue(head.key, store_samples.item("r-0"))
        assert known.known is not None

    async def test_deleted_stays_deleted(self, store: store.Store) -> None:
        """Nothing brings a deleted session back, and nothing of it is left."""
        head = await store_samples.owned(store)
        key = head.key
        await store.sessions.enqueue(key, store_samples.item("r-1"))
        await store.sessions.delete(key)
        await store.sessions.delete(key)
        for request_id in ("create-1", "create-2"):
            with pytest.raises(errors.SessionDeleted):
                await store.sessions.create(store_samples.new(key, request_id=request_id))
        with pytest.raises(errors.SessionDeleted):
            await store.sessions.head(key)
        with pytest.raises(errors.SessionDeleted):
            await store.sessions.hot(key, after=0, limit=1)
        with pytest.raises(errors.SessionDeleted):
            await store.sessions.enqueue(key, store_samples.item("r-2"))
        assert await store.sessions.inbox(key) == []
        assert await store.sessions.outcome(key, "r-1") is None
        assert await store.sessions.page(key.tenant, after="", limit=9) == ([], "")

    async def test_delete_fences_the_owner(self, store: store.Store) -> None:
        """Neither the owner of a deleted session nor a new claim can write."""
        head = await store_samples.owned(store)
        await store.sessions.delete(head.key)
        with pytest.raises(errors.SessionDeleted):
            await store.sessions.commit(store_samples.commit(head))
        with pytest.raises(errors.SessionDeleted):
            await store.sessions.acquire(store_samples.claim(head))
        with pytest.raises(errors.SessionDeleted):
            await store.sessions.release(
                head.key, epoch=head.epoch, nonce=head.nonce, expected_version=head.version
            )
