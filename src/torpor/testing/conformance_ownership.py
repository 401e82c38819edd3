"""Conformance: one writer. Acquiring, releasing, vacating, fencing, sealing."""
# ruff: noqa: S101 - these are tests

import asyncio

import msgspec
import pytest

from torpor import errors
from torpor.storage import records, store
from torpor.testing import store_samples

OTHER = records.Owner(node="node-2", incarnation="inc-2", actor="actor-2")


class Ownership:
    """Epochs grow by one, one nonce each, and who lost ownership cannot write."""

    async def test_acquire_raises_the_epoch(self, store: store.Store) -> None:
        """A claim sets owner and nonce, and returns the head as it is after it."""
        created = await store.sessions.create(store_samples.new(store_samples.key()))
        taken = await store.sessions.acquire(store_samples.claim(created, nonce="n-1"))
        assert (taken.head.epoch, taken.head.nonce) == (1, "n-1")
        assert taken.head.owner == store_samples.OWNER
        assert taken.head == await store.sessions.head(created.key)

    async def test_acquire_reads_everything(self, store: store.Store) -> None:
        """A new owner gets state, hot events, inbox and outcomes with its claim."""
        head = await store_samples.owned(store)
        ref = records.CheckpointRef(
            version=2, epoch=1, origin="chat", state="b3-" + "ab" * 32, state_bytes=5, inline=True
        )
        commit = store_samples.commit(
            head,
            checkpoint=ref,
            inline_state=b"\0\xffpq\n",
            manifest="b3-" + "cd" * 32,
            outcomes={"r-1": store_samples.done()},
            usage=records.Usage(turns=1, cpu_ms=2, busy_ms=3, rss_bytes=1 << 40),
        )
        await store.sessions.commit(commit)
        await store.sessions.enqueue(head.key, store_samples.item("r-2"))
        taken = await store.sessions.acquire(
            store_samples.claim(await store.sessions.head(head.key), owner=OTHER)
        )
        assert taken.inline_state == b"\0\xffpq\n"
        assert [event.seq for event in taken.hot] == [1, 2]
        assert taken.hot[1:] == list(commit.events)
        assert taken.inbox == [store_samples.item("r-2")]
        assert taken.outcomes["r-1"] == store_samples.done()
        assert taken.outcomes["r-2"].state is records.OutcomeState.PENDING
        assert (taken.head.checkpoint, taken.head.manifest) == (ref, commit.manifest)
        assert taken.head.usage == commit.usage

    async def test_fruitless_claims_are_counted(self, store: store.Store) -> None:
        """Claims count while the inbox holds something, each once, until a commit takes place.

        One that its owner gave up alive is taken back.
        """
        head = await store.sessions.create(store_samples.new(store_samples.key()))
        for expected in (0, 0):
            taken = await store.sessions.acquire(store_samples.claim(head))
            assert taken.head.fruitless == expected
            head = taken.head
        await store.sessions.enqueue(head.key, store_samples.item("r-1"))
        for expected in (1, 2):
            claim = store_samples.claim(head)
            await store.sessions.acquire(claim)
            taken = await store.sessions.acquire(claim)
            assert taken.head.fruitless == expected
            head = taken.head
        for died, expected in ((True, 2), (False, 2), (False, 2)):
            incarnation = store_samples.OWNER.incarnation
            await store.sessions.vacate(
                head.key, epoch=head.epoch, incarnation=incarnation, died=died
            )
            head = await store.sessions.head(head.key)
            assert head.fruitless == expected
            head = (await store.sessions.acquire(store_samples.claim(head))).head
        await store.sessions.commit(store_samples.commit(head))
        assert (await store.sessions.head(head.key)).fruitless == 0

    async def test_one_of_many_claims_wins(self, store: store.Store) -> None:
        """Of claims on the same observation one succeeds, the others are fenced."""
        head = await store.sessions.create(store_samples.new(store_samples.key()))
        claims = [store.sessions.acquire(store_samples.claim(head)) for _ in range(8)]
        results = await asyncio.gather(*claims, return_exceptions=True)
        won = [result for result in results if isinstance(result, records.Acquired)]
        assert len(won) == 1
        assert sum(isinstance(result, errors.Fenced) for result in results) == 7
        assert (await store.sessions.head(head.key)).nonce == won[0].head.nonce

    async def test_claim_sent_twice_is_one_claim(self, store: store.Store) -> None:
        """A claim whose answer was lost may be repeated, while it holds."""
        head = await store.sessions.create(store_samples.new(store_samples.key()))
        claim = store_samples.claim(head)
        first = await store.sessions.acquire(claim)
        assert await store.sessions.acquire(claim) == first
        await store.sessions.acquire(store_samples.claim(first.head, owner=OTHER))
        with pytest.raises(errors.Fenced):
            await store.sessions.acquire(claim)

    async def test_acquire_compares_the_incarnation(self, store: store.Store) -> None:
        """The epoch alone is not enough: the owner must be the observed one."""
        head = await store_samples.owned(store)
        claim = records.Acquire(
            key=head.key,
            observed_epoch=head.epoch,
            observed_incarnation="inc-9",
            owner=OTHER,
            nonce="n-2",
        )
        with pytest.raises(errors.Fenced):
            await store.sessions.acquire(claim)
        assert await store.sessions.head(head.key) == head

    async def test_former_owner_is_fenced(self, store: store.Store) -> None:
        """After a takeover the former owner's every write is refused and changes nothing."""
        old = await store_samples.owned(store)
        new = (await store.sessions.acquire(store_samples.claim(old, owner=OTHER))).head
        assert new.owner == OTHER
        with pytest.raises(errors.Fenced):
            await store.sessions.commit(store_samples.commit(old))
        with pytest.raises(errors.Fenced):
            await store.sessions.release(
                old.key, epoch=old.epoch, nonce=old.nonce, expected_version=old.version
            )
        with pytest.raises(errors.Fenced):
            await store.sessions.seal(_seal(old, new_hot_from=2))
        assert not await store.sessions.vacate(old.key, epoch=old.epoch, incarnation="inc-1")
        assert await store.sessions.head(old.key) == new

    async def test_nonce_must_match(self, store: store.Store) -> None:
        """Within one epoch another nonce is fenced, the empty one too."""
        head = await store_samples.owned(store)
        for nonce in ("", "other"):
            with pytest.raises(errors.Fenced):
                await store.sessions.commit(store_samples.commit(head, nonce=nonce))

    async def test_released_session_has_no_owner(self, store: store.Store) -> None:
        """Release clears the owner, keeps epoch and node; the next claim gets a higher epoch."""
        head = await store_samples.owned(store)
        assert await store.sessions.release(
            head.key, epoch=head.epoch, nonce=head.nonce, expected_version=head.version
        )
        free = await store.sessions.head(head.key)
        assert (free.owner, free.nonce, free.epoch) == (None, "", head.epoch)
        assert head.owner is not None
        assert free.left_node == head.owner.node
        with pytest.raises(errors.Fenced):
            await store.sessions.commit(store_samples.commit(head))
        for nonce in (head.nonce, ""):
            with pytest.raises(errors.Fenced):
                await store.sessions.release(
                    head.key, epoch=head.epoch, nonce=nonce, expected_version=head.version
                )
        again = await store.sessions.acquire(store_samples.claim(free))
        assert again.head.epoch == head.epoch + 1
        assert again.head.left_node == ""

    async def test_release_at_another_version(self, store: store.Store) -> None:
        """Nothing is released under another version than the owner's: something was lost."""
        head = await store_samples.owned(store)
        for version in (head.version - 1, head.version + 1):
            with pytest.raises(errors.VersionConflict):
                await store.sessions.release(
                    head.key, epoch=head.epoch, nonce=head.nonce, expected_version=version
                )
        assert await store.sessions.head(head.key) == head

    async def test_release_refuses_while_messages_wait(self, store: store.Store) -> None:
        """An owner cannot leave with something in the inbox, unless the session is paused."""
        head = await store_samples.owned(store)
        await store.sessions.enqueue(head.key, store_samples.item("r-1"))
        assert not await store.sessions.release(
            head.key, epoch=head.epoch, nonce=head.nonce, expected_version=head.version
        )
        assert await store.sessions.head(head.key) == head
        paused = store_samples.commit(head, status=records.Status.PAUSED)
        await store.sessions.commit(paused)
        assert await store.sessions.release(
            head.key, epoch=head.epoch, nonce=head.nonce, expected_version=head.version + 1
        )
        assert len(await store.sessions.inbox(head.key)) == 1

    async def test_vacate_clears_only_the_named_owner(self, store: store.Store) -> None:
        """A dead process is cleared by epoch and incarnation, and cannot commit afterwards."""
        head = await store_samples.owned(store)
        assert not await store.sessions.vacate(head.key, epoch=head.epoch, incarnation="inc-9")
        assert not await store.sessions.vacate(head.key, epoch=9, incarnation="inc-1")
        assert not await store.sessions.vacate(
            head.key, epoch=head.epoch, incarnation="inc-1", nonce="another"
        )
        assert await store.sessions.head(head.key) == head
        assert await store.sessions.vacate(head.key, epoch=head.epoch, incarnation="inc-1")
        assert not await store.sessions.vacate(head.key, epoch=head.epoch, incarnation="inc-1")
        assert (await store.sessions.head(head.key)).owner is None
        with pytest.raises(errors.Fenced):
            await store.sessions.commit(store_samples.commit(head))

    async def test_gateway_pauses_an_evicted_session(self, store: store.Store) -> None:
        """With nobody in office the empty nonce may commit, and only at the observed epoch."""
        head = await store_samples.owned(store)
        await store.sessions.release(
            head.key, epoch=head.epoch, nonce=head.nonce, expected_version=head.version
        )
        free = await store.sessions.head(head.key)
        await store.sessions.commit(store_samples.commit(free, status=records.Status.PAUSED))
        assert (await store.sessions.head(head.key)).status is records.Status.PAUSED
        with pytest.raises(errors.Fenced):
            await store.sessions.commit(store_samples.commit(free, epoch=free.epoch - 1))

    async def test_seal_moves_the_boundary(self, store: store.Store) -> None:
        """Hot loses what is below the boundary, in the step that names the cold index."""
        head = await store_samples.owned(store)
        outcomes = {"r-1": store_samples.done(), "r-2": store_samples.done()}
        await store.sessions.commit(store_samples.commit(head, count=5, outcomes=outcomes))
        await store.sessions.seal(_seal(head, new_hot_from=4, forgotten=("r-1",)))
        page = await store.sessions.hot(head.key, after=0, limit=9)
        assert (page.hot_from, page.next_seq, page.cold_index) == (4, 7, "b3-" + "ef" * 32)
        assert [event.seq for event in page.events] == [4, 5, 6]
        assert await store.sessions.outcome(head.key, "r-1") is None
        assert await store.sessions.outcome(head.key, "r-2") == store_samples.done()

    async def test_boundary_never_moves_back(self, store: store.Store) -> None:
        """A seal below the boundary, or above one that hot has not reached, changes nothing."""
        head = await store_samples.owned(store)
        await store.sessions.commit(store_samples.commit(head, count=5))
        await store.sessions.seal(_seal(head, new_hot_from=3))
        before = await store.sessions.hot(head.key, after=0, limit=9)
        ahead = msgspec.structs.replace(head, hot_from=4)
        for refused in (_seal(head, new_hot_from=2), _seal(ahead, new_hot_from=5)):
            with pytest.raises(errors.VersionConflict):
                await store.sessions.seal(refused)
        assert await store.sessions.hot(head.key, after=0, limit=9) == before

    async def test_seal_follows_one_whose_answer_was_lost(self, store: store.Store) -> None:
        """An owner that does not know of its last seal may repeat it, and seal further."""
        head = await store_samples.owned(store)
        await store.sessions.commit(store_samples.commit(head, count=5))
        for new_hot_from in (3, 3, 5):
            await store.sessions.seal(_seal(head, new_hot_from=new_hot_from))
        page = await store.sessions.hot(head.key, after=0, limit=9)
        assert (page.hot_from, [event.seq for event in page.events]) == (5, [5, 6])

    async def test_seal_may_empty_the_hot_tail(self, store: store.Store) -> None:
        """With everything cold the next commit still continues the numbers."""
        head = await store_samples.owned(store)
        await store.sessions.seal(_seal(head, new_hot_from=2))
        assert (await store.sessions.hot(head.key, after=0, limit=9)).events == []
        done = await store.sessions.commit(store_samples.commit(head))
        assert done.next_seq == 3
        page = await store.sessions.hot(head.key, after=0, limit=9)
        assert [event.seq for event in page.events] == [2]


def _seal(
    head: records.Head, *, new_hot_from: int, forgotten: tuple[str, ...] = ()
) -> records.Seal:
    return records.Seal(
        key=head.key,
        epoch=head.epoch,
        nonce=head.nonce,
        hot_from=head.hot_from,
        new_hot_from=new_hot_from,
        cold_index="b3-" + "ef" * 32,
        forgotten=forgotten,
    )
