"""What a refusal is worth after an owner has not answered."""

import contextlib
from collections.abc import Iterator

from torpor import errors
from torpor.storage import records


@contextlib.contextmanager
def in_doubt(unanswered: bool, key: records.SessionKey) -> Iterator[None]:
    """Let no refusal pass for certain while an owner that was asked before may be at work."""
    try:
        yield
    except errors.REFUSALS as refusal:
        if not unanswered:
            raise
        raise errors.OutcomeUnknown(
            f"the owner that was asked first did not answer, and may have done it; then: {refusal}",
            session=key.session,
            tenant=key.tenant,
        ) from refusal
