"""Who comes first on a busy node, with real processes."""

import os
import subprocess
import sys

import pytest

from torpor.actors import priority

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to lift a process")

#: Starts at Ray's niceness with a second thread, lifts itself, says the niceness of each thread.
STARTED = """
import os, threading
from torpor.actors import priority
os.nice(15)
hold = threading.Event()
threading.Thread(target=hold.wait, daemon=True).start()
{first}
granted = priority.lift(priority.SERVING)
threads = [int(thread) for thread in os.listdir("/proc/self/task")]
print(granted, len(threads), {{os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}})
"""


def told(first: str) -> str:
    """Return what a process says that runs `first` before it lifts itself."""
    ran = [sys.executable, "-c", STARTED.format(first=first)]
    return subprocess.run(ran, capture_output=True, text=True, check=True).stdout.strip()


def test_every_thread_is_lifted() -> None:
    """What serves comes before what still starts, with all its threads."""
    assert told("") == f"True 2 {{{priority.SERVING}}}"


def test_who_has_not_the_right_stays_as_ray_made_it() -> None:
    """A node that runs as a common user works all the same."""
    assert told("os.setuid(65534)") == "False 2 {15}"
