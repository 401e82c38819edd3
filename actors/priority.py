"""Which processes of a node come first when the processor is short.

Ray starts every worker at niceness 15, those that serve and those that still import alike. A node
that takes up the sessions of a lost one would make everybody on it wait for that: so a process is
lifted as soon as others wait for it. Only root, or who has CAP_SYS_NICE, may lift a process; where
that is not granted all stay as Ray made them.
"""

import contextlib
import os
import pathlib

#: Of gateways and node agents, whom many sessions wait for.
INFRASTRUCTURE = 0
#: Of live sessions: before those that start, behind all that they need to answer.
SERVING = 5


def lift(niceness: int) -> bool:
    """Give all threads of this process that niceness; returns whether it was granted.

    Threads started later inherit it from the one that starts them.
    """
    try:
        # Linux keeps it per thread, whatever POSIX says.
        for thread in pathlib.Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
    except PermissionError:
        return False
    return True
