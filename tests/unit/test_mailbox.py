"""The queue inside an owner: order, bounds, busy policy, and the end."""

import asyncio

import pytest

from torpor import errors, limits, messages
from torpor.actors import mailbox, protocol

WORK = protocol.Leave(epoch=1)


async def test_first_in_first_out() -> None:
    """Jobs are taken in the order in which they were put."""
    box = mailbox.Mailbox("s")
    jobs = [box.put(WORK) for _ in range(5)]
    assert [await box.take() for _ in range(5)] == jobs


async def test_take_waits_for_a_job() -> None:
    """An empty mailbox is awaited; it is not busy meanwhile, and busy once a job is taken."""
    box = mailbox.Mailbox("s")
    taking = asyncio.create_task(box.take())
    await asyncio.sleep(0)
    assert not taking.done()
    assert not box.busy
    job = box.put(WORK)
    assert await taking is job
    assert box.busy


async def test_full_mailbox_refuses() -> None:
    """One job more than the bound is refused; after one was taken there is room again."""
    box = mailbox.Mailbox("s")
    for _ in range(limits.MAILBOX_MAX):
        box.put(WORK)
    with pytest.raises(errors.MailboxFull) as refused:
        box.put(WORK)
    assert refused.value.ids == {"session": "s"}
    await box.take()
    box.put(WORK)
    assert len(box) == limits.MAILBOX_MAX


async def test_reject_looks_at_work_and_queue() -> None:
    """`reject` is refused while something is under way, and while something waits."""
    box = mailbox.Mailbox("s")
    box.put(WORK, busy=protocol.BusyPolicy.REJECT)
    with pytest.raises(errors.SessionBusy):
        box.put(WORK, busy=protocol.BusyPolicy.REJECT)
    await box.take()
    with pytest.raises(errors.SessionBusy):
        box.put(WORK, busy=protocol.BusyPolicy.REJECT)
    box.put(WORK, busy=protocol.BusyPolicy.ENQUEUE)


async def test_reject_lets_the_same_request_wait() -> None:
    """A caller who comes back for the answer to what is under way is not refused."""
    box = mailbox.Mailbox("s")
    box.put(_delivery("r-1"))
    await box.take()
    again = box.put(_delivery("r-1"), busy=protocol.BusyPolicy.REJECT)
    with pytest.raises(errors.SessionBusy):
        box.put(_delivery("r-2"), busy=protocol.BusyPolicy.REJECT)
    assert await box.take() is again


async def test_one_look_into_the_inbox_serves_all() -> None:
    """Looks into the inbox do not pile up; one that is under way may have looked too early."""
    box = mailbox.Mailbox("s")
    first = box.put(protocol.DrainInbox())
    assert box.put(protocol.DrainInbox()) is first
    await box.take()
    assert box.put(protocol.DrainInbox()) is not first
    assert len(box) == 1


def _delivery(request_id: str) -> protocol.Deliver:
    return protocol.Deliver(
        epoch=1,
        message=messages.Message(text="x", request_id=request_id),
        body_digest="d",
        busy=protocol.BusyPolicy.ENQUEUE,
        deadline_s=60.0,
    )


async def test_closing_refuses_what_waits_and_what_comes() -> None:
    """What the mailbox is closed with answers every waiting caller and every later one."""
    box = mailbox.Mailbox("s")
    waiting = [box.put(WORK) for _ in range(2)]
    box.close(errors.Fenced("left"))
    for job in waiting:
        with pytest.raises(errors.Fenced, match="left"):
            protocol.accept(await job.answer)
    with pytest.raises(errors.Fenced, match="left"):
        box.put(WORK)
    assert len(box) == 0


async def test_expired_jobs_and_absent_callers() -> None:
    """A job knows when its caller gave up; answering a caller that is gone does nothing."""
    box = mailbox.Mailbox("s")
    late, patient = box.put(WORK, deadline_s=0.0), box.put(WORK, deadline_s=3600.0)
    assert (late.expired, patient.expired, box.put(WORK).expired) == (True, False, False)
    patient.answer.cancel()
    patient.resolve("nobody hears it")
    assert patient.answer.cancelled()
