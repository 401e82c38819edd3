"""What a session has lost to damage, for the agent that has to go on without it."""

import msgspec


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """What a wake could not bring back; `Agent.on_recover` and the history are told of it."""

    #: The version that was damaged.
    from_version: int
    #: The version that state and files are of now; the same, if only files were left out.
    to_version: int
    #: The first and the last version whose changes to state and files are gone; empty if none are.
    #: What was said in them is in the history all the same.
    versions: tuple[int, ...]
    #: Whether changes to the state are among them.
    state: bool
    #: Paths of `to_version` that could not be brought back, at most 1,000 of them. A folder's ends
    #: with a slash, and what is in it may be there in part; the whole workspace is `./`.
    files: tuple[str, ...]
    #: How many there are.
    files_total: int
