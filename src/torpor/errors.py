"""Every error that torpor raises, as one tree.

    TorporError
    ├── InvalidArgument      InvalidField · MessageTooLarge · PathOutsideWorkspace · RequestIdReused
    ├── NotFound             SessionNotFound · AgentNotFound · TenantNotFound · NodeNotFound
    │                        · WorkspaceFileNotFound · SessionDeleted
    ├── AlreadyExists        SessionExists
    ├── FailedPrecondition   SessionPaused · SessionBusy · AgentImportFailed · NotEvictable
    │                        · StoreBelowDurability · SigningKeyMissing · CheckpointIncompatible
    ├── Unauthenticated      ApiKeyMissing · ApiKeyInvalid
    ├── PermissionDenied     OperatorOnly
    ├── ResourceExhausted    MailboxFull · InboxFull · DedupFull · NoCapacity · TooManyRequests
    │                        · WorkspaceQuotaExceeded · StorageFull
    ├── Aborted              Fenced · VersionConflict
    ├── Unavailable          StoreUnavailable · StoreReadOnly · StorageUnavailable
    │                        · OwnerUnreachable · ActivationFailed · OutcomeUnknown · NodeDraining
    ├── DataLoss             BlobCorrupt · BlobMissing · CheckpointCorrupt
    │                        · HistoryGap (VersionsLost)
    ├── DeadlineExceeded
    ├── TurnFailed           StateNotPicklable · TurnTimedOut · WorkspaceUnreadable · MessageGivenUp
    └── Internal

The second level decides the gRPC status code (`torpor.status`), the leaf decides the `reason`, and
`retryable` says whether the same request, with the same request id, may be sent again.
"""

import re
from typing import ClassVar


class TorporError(Exception):
    """Base of all errors; carries a stable `reason` and the ids concerned.

    The class docstring is the default message. Keyword arguments become `ids`, so that a log line
    or a client can tell which session, tenant or file is meant without parsing the message.
    """

    reason: ClassVar[str] = "TORPOR_ERROR"
    retryable: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        # `SessionNotFound` is SESSION_NOT_FOUND on the wire: renaming a class breaks its clients.
        cls.reason = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()

    def __init__(self, message: str | None = None, **ids: str | int) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.ids: dict[str, str] = {name: str(value) for name, value in ids.items()}
        super().__init__(self.message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.ids))


def _rebuild(cls: type[TorporError], message: str, ids: dict[str, str]) -> TorporError:
    return cls(message, **ids)


class Internal(TorporError):
    """Something went wrong inside torpor; the server's log has the details."""


# --- the request itself is wrong ------------------------------------------------------------------


class InvalidArgument(TorporError):
    """The request is malformed."""


class InvalidField(InvalidArgument):
    """A field of the request is missing, unknown or has a value that is not allowed."""


class MessageTooLarge(InvalidArgument):
    """The message is larger than the limit."""


class PathOutsideWorkspace(InvalidArgument):
    """The path leads out of the workspace."""


class RequestIdReused(InvalidArgument):
    """This request id was used before with a different body."""


class NotFound(TorporError):
    """There is no such thing."""


class SessionNotFound(NotFound):
    """There is no session of this id in this tenant."""


class SessionDeleted(NotFound):
    """The session was deleted; deleted stays deleted."""


class AgentNotFound(NotFound):
    """There is no agent of this name; register it with `torpor deploy module:Class`."""


class TenantNotFound(NotFound):
    """There is no such tenant."""


class NodeNotFound(NotFound):
    """There is no such node."""


class WorkspaceFileNotFound(NotFound):
    """There is no such file in the session's workspace."""


class AlreadyExists(TorporError):
    """It exists already."""


class SessionExists(AlreadyExists):
    """A session of this id exists already."""


# --- the request is fine, the state of things is not ----------------------------------------------


class FailedPrecondition(TorporError):
    """The system is not in a state in which this can be done."""


class SessionPaused(FailedPrecondition):
    """The session is paused; resume it first."""


class SessionBusy(FailedPrecondition):
    """The session is in the middle of a turn and the call asked not to wait."""


class AgentImportFailed(FailedPrecondition):
    """The agent cannot be imported on the nodes."""


class NotEvictable(FailedPrecondition):
    """The session is working and cannot be evicted now."""


class StoreBelowDurability(FailedPrecondition):
    """The store is set below the durability level that the configuration names."""


class SigningKeyMissing(FailedPrecondition):
    """There is no key to sign checkpoints with; torpor does not start without one."""


class CheckpointIncompatible(FailedPrecondition):
    """The checkpoint is sound, but this Python or this agent's code cannot load it."""


class Unauthenticated(TorporError):
    """The call does not say who makes it."""


class ApiKeyMissing(Unauthenticated):
    """No API key; send it as `authorization: Bearer …` or set TORPOR_API_KEY."""


class ApiKeyInvalid(Unauthenticated):
    """The API key is unknown or was revoked."""


class PermissionDenied(TorporError):
    """The API key does not allow this."""


class OperatorOnly(PermissionDenied):
    """This call needs an operator's API key."""


# --- too much ------------------------------------------------------------------------------------


class ResourceExhausted(TorporError):
    """A bound is reached; nothing was done."""

    retryable = True


class MailboxFull(ResourceExhausted):
    """Too many messages wait for this session."""


class InboxFull(ResourceExhausted):
    """The session's durable inbox is full."""


class DedupFull(ResourceExhausted):
    """The session handled more requests in the last hour than it can remember."""


class NoCapacity(ResourceExhausted):
    """No node can take one more session now."""


class TooManyRequests(ResourceExhausted):
    """This gateway has as many calls in flight as it may."""


class WorkspaceQuotaExceeded(ResourceExhausted):
    """The workspace is larger than its quota; the turn's file changes were not kept."""

    retryable = False


class StorageFull(ResourceExhausted):
    """The shared storage is full; the turn was not committed."""


# --- ownership -----------------------------------------------------------------------------------


class Aborted(TorporError):
    """Somebody else came first."""

    retryable = True


class Fenced(Aborted):
    """Another activation owns the session now; this one must stop."""


class VersionConflict(Aborted):
    """The session has moved on since it was read."""


#: What says that nothing was done. It is true of whoever says it, not of those asked before.
REFUSALS = (ResourceExhausted, FailedPrecondition, Aborted)


# --- something is away ---------------------------------------------------------------------------


class Unavailable(TorporError):
    """A part of the system cannot be reached now; try again."""

    retryable = True


class StoreUnavailable(Unavailable):
    """Redis cannot be reached."""


class StoreReadOnly(Unavailable):
    """Redis refuses writes: it is a read-only replica, full, or cannot persist."""


class StorageUnavailable(Unavailable):
    """The shared storage cannot be read or written."""


class OwnerUnreachable(Unavailable):
    """The process that owns the session does not answer."""


class ActivationFailed(Unavailable):
    """The session could not be woken."""


class OutcomeUnknown(Unavailable):
    """It is not known whether the turn was committed; the same request id, sent again, tells."""


class NodeDraining(Unavailable):
    """The node takes no more sessions."""


# --- damage --------------------------------------------------------------------------------------


class DataLoss(TorporError):
    """Stored data is damaged; nothing of it was decoded."""


class BlobCorrupt(DataLoss):
    """A blob does not hash to its name."""


class BlobMissing(DataLoss):
    """A blob that a commit names is not in the storage."""


class CheckpointCorrupt(DataLoss):
    """A checkpoint is torn, altered, or signed with another key; it was not decoded."""


class HistoryGap(DataLoss):
    """Events are missing from the history."""


class VersionsLost(HistoryGap):
    """The store went back to an earlier state: what it had acknowledged since is gone."""


class DeadlineExceeded(TorporError):
    """The deadline passed; a turn that had begun goes on, and the same request id tells its end."""

    retryable = True


# --- the agent's own failure ----------------------------------------------------------------------


class TurnFailed(TorporError):
    """The agent raised an error; the turn left no trace but the error in the history."""


class StateNotPicklable(TurnFailed):
    """The agent's state cannot be pickled."""


class MessageGivenUp(TurnFailed):
    """All processes died that woke for this message or handled it; it is not tried again."""


class TurnTimedOut(TurnFailed):
    """The turn ran longer than the agent allows."""


class WorkspaceUnreadable(TurnFailed):
    """A file or folder of the workspace cannot be read, so the turn's files could not be kept."""


def _leaves(cls: type[TorporError]) -> list[type[TorporError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _leaves(child))]


def by_reason(reason: str) -> type[TorporError]:
    """Return the error class of a stable reason; `Internal` for one this version does not know."""
    return _BY_REASON.get(reason, Internal)


_BY_REASON = {cls.reason: cls for cls in _leaves(TorporError)}
