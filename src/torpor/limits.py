"""Every bound that is not a setting, with its reason.

What an operator may want to change lives in `torpor.config`; what is here follows from the design.
"""

#: A message travels through gRPC, one actor call and one commit script; past this, send a file
#: instead.
MESSAGE_BYTES_MAX = 1 << 20
#: One event's encoded size: a message plus what the agent adds to it.
EVENT_BYTES_MAX = 4 << 20
#: All events of one turn together: what one script call may bring without stalling the store.
TURN_BYTES_MAX = 16 << 20
#: Events of one turn: a script call of this size still takes well under 100 ms.
TURN_EVENTS_MAX = 1_000
#: A request: the largest message as JSON, in which a byte may become six, with room for the rest.
GRPC_REQUEST_BYTES_MAX = 8 << 20
#: A response: one event as JSON, likewise.
GRPC_RESPONSE_BYTES_MAX = 26 << 20
#: A page of events ends after the first event that takes it past this.
PAGE_EVENTS_BYTES_MAX = 1 << 20
#: File contents move in pieces of this size, so that memory does not depend on the file.
FILE_CHUNK_BYTES = 1 << 20

#: Up to here the state travels inside the commit; larger ones become a blob (one more fsync).
INLINE_STATE_BYTES_MAX = 32 << 10
#: A state has to fit in memory twice (old and new) beside the agent; 1 GiB is where that stops
#: being sane.
STATE_BYTES_MAX = 1 << 30

#: Versions of state and files that a wake can go back to when the newest is damaged, with that one
#: itself: what a failing disk did not keep is as a rule what it was given last, and may be more
#: than one turn of it. Each costs the store its inline state, while the session is awake.
RESTORE_POINTS_MAX = 4
#: How many of them a session keeps asleep, when nothing is being written any more.
RESTORE_POINTS_ASLEEP_MAX = 2

#: The owner seals the hot tail once it is this long: one segment then amortises two fsyncs.
HOT_EVENTS_MAX = 256
#: What sealing leaves hot: enough for a model's recent context without touching shared storage.
HOT_EVENTS_KEPT = 16
#: An evicted session's hot tail is cut when longer than this; between the two, sealing would not
#: pay.
HOT_EVENTS_ASLEEP_MAX = 32
#: Events in one cold segment: a page of history opens one or two of them.
SEGMENT_EVENTS_MAX = 256
#: A history page, whatever the client asks for.
PAGE_EVENTS_MAX = 500
#: A page of sessions, whatever the client asks for.
PAGE_SESSIONS_MAX = 200

#: Messages waiting inside the owner for their turn; beyond it the caller learns at once.
MAILBOX_MAX = 64
#: Messages waiting durably while nobody is home.
INBOX_MAX = 256
#: An accepted message that is still there after so many claims in a row without a commit is given
#: up: it ends every process that handles it. Several, since nodes can be lost under a good one.
FRUITLESS_CLAIMS_MAX = 5
#: Outcomes kept beside the hot tail: the tail's turns plus a full inbox, doubled.
DEDUP_HOT_MAX = 1_024
#: Outcomes an owner remembers for the hour; about 2 MB of memory.
DEDUP_MAX = 16_384
#: How long an outcome is remembered after it was resolved.
DEDUP_KEEP_MS = 3_600_000

#: Characters that session code prints in one turn and the history keeps; the log file has more.
OUTPUT_CHARS_MAX = 64 << 10
#: One log file of a session; of those before it as many are kept as hold as much again.
LOG_FILE_BYTES_MAX = 4 << 20

#: Wake hints are spread over this many keys, so that a sweep never reads a large one.
WAKE_SHARDS = 16
#: Hints one sweep of one shard looks at.
WAKE_SWEEP_MAX = 100

#: Forwarding to an owner that turned out stale: once for a stale hint, once for a move meanwhile.
FORWARDS_MAX = 2
#: Watchers of one gateway; each holds a stream and a small buffer.
WATCHERS_MAX = 2_000
