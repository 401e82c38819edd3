"""What every store checks of a commit before it looks at the session."""

from torpor import errors, limits
from torpor.storage import records


def check(commit: records.Commit) -> None:
    """Refuse a commit that no store could apply.

    Raises:
        ResourceExhausted: it has more than `TURN_EVENTS_MAX` events.
        Internal: its parts contradict each other, which is a fault of the caller.
    """
    if len(commit.events) > limits.TURN_EVENTS_MAX:
        raise errors.ResourceExhausted(
            f"a commit takes {limits.TURN_EVENTS_MAX} events, this one has {len(commit.events)}"
        )
    if not commit.commit_id:
        raise errors.Internal("a commit needs an id: it tells whether a lost answer was a commit")
    if any(event.seq != commit.events[0].seq + i for i, event in enumerate(commit.events)):
        raise errors.Internal("the seqs of a commit's events have a gap")
    inline = commit.checkpoint is not None and commit.checkpoint.inline
    if commit.inline_state is not None and not inline:
        raise errors.Internal("an inline state needs a checkpoint that says it is inline")
    if inline and commit.inline_state is None and not commit.back_to:
        raise errors.Internal("a checkpoint that says it is inline needs its envelope")
