"""What a turn writes into the history, as pure functions: from message and result to a change."""

from collections.abc import Sequence
from typing import Any

from torpor import errors, messages
from torpor.actors import agent_thread, changes, protocol, rollback, turn_context
from torpor.storage import records


def change(
    message: messages.Message,
    body_digest: str,
    result: agent_thread.TurnResult | agent_thread.TurnFailure,
    *,
    printed: dict[str, object] | None = None,
    emitted: Sequence[turn_context.Draft] = (),
    consumed: Sequence[str] = (),
    usage: records.Usage | None = None,
) -> changes.Change:
    """Return the change that makes a turn true: what was said, printed, emitted, and the answer.

    The answer is the last draft. A failed turn leaves neither state nor files nor emitted events.
    """
    request = {"request_id": message.request_id, "body_digest": body_digest}
    said: dict[str, Any] = {"text": message.text, "sender": message.sender, **request}
    if message.data:
        said["data"] = message.data
    drafts = [turn_context.Draft(type=messages.USER_MESSAGE, data=said)]
    if printed is not None:
        drafts.append(turn_context.Draft(type=messages.AGENT_OUTPUT, data=printed))
    if isinstance(result, agent_thread.TurnFailure):
        failed = {
            "reason": result.reason,
            "message": result.message,
            "traceback": result.traceback,
        }
        return changes.Change(
            drafts=(*drafts, turn_context.Draft(type=messages.AGENT_ERROR, data=request | failed)),
            request_id=message.request_id,
            body_digest=body_digest,
            outcome=records.OutcomeState.FAILED,
            consumed=consumed,
            usage=usage,
        )
    replied: dict[str, object] = {"text": result.reply.text}
    if result.reply.data:
        replied["data"] = result.reply.data
    answer = turn_context.Draft(type=messages.AGENT_MESSAGE, data=request | replied)
    return changes.Change(
        drafts=(*drafts, *emitted, answer),
        state=result.state,
        manifest=result.snapshot.manifest,
        request_id=message.request_id,
        body_digest=body_digest,
        consumed=consumed,
        usage=usage,
    )


def given_up(item: records.InboxItem, error: errors.MessageGivenUp) -> changes.Change:
    """Return the change that answers a message which ended every process that handled it."""
    failure = agent_thread.TurnFailure(reason=error.reason, message=error.message, traceback="")
    consumed = (item.message.request_id,)
    return change(item.message, item.body_digest, failure, consumed=consumed)


def recovered(
    item: records.InboxItem, forgotten: records.Forgotten, claimed: records.Head
) -> changes.Change:
    """Return the change that reports what a former owner left to be reported.

    Nothing is, if all that it was told of is there: only its claim was lost.
    """
    request_id, lost = item.message.request_id, rollback.as_of(forgotten, claimed)
    if lost.kept_version >= lost.version:
        done = records.Outcome(
            body_digest=item.body_digest,
            state=records.OutcomeState.DONE,
            version=claimed.version,
            at_ms=item.at_ms,
        )
        return changes.Change(consumed=(request_id,), known={request_id: done})
    draft = turn_context.Draft(type=messages.SESSION_RECOVERED, data=rollback.data(lost))
    return changes.Change(
        drafts=(draft,),
        request_id=request_id,
        body_digest=item.body_digest,
        consumed=(request_id,),
    )


def answer(made: changes.Change, committed: records.Committed) -> messages.Event:
    """Return the event that answers the turn, which is the last one of its commit."""
    draft = made.drafts[-1]
    return messages.Event(
        seq=committed.next_seq - 1,
        type=draft.type,
        data=draft.data,
        version=committed.version,
        at_ms=0,
    )


def reply(event: messages.Event, *, repeated: bool) -> protocol.Delivered:
    """Return the reply that an `agent.message` or `agent.error` event holds."""
    error = None
    if event.type == messages.AGENT_ERROR:
        error = protocol.Refusal(
            reason=str(event.data["reason"]), message=str(event.data["message"]), ids={}
        )
    return protocol.Delivered(
        text=str(event.data.get("text", "")),
        data=dict(event.data.get("data", {})),
        seq=event.seq,
        version=event.version,
        error=error,
        repeated=repeated,
    )
