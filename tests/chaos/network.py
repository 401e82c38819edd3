"""Machines that are network namespaces on one bridge, and what cuts them off from each other.

Needs root and iproute2. A cut is silent, as a broken switch is: the sender is given a hardware
address that nobody has. An address that the kernel refuses would tell the sender at once.
"""

import collections
import contextlib
import itertools
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import ground
import procfs

#: Names of namespaces begin with it and with the harness's process id.
PREFIX = "torpor"
#: No card has this address.
_NOBODY = "02:00:00:00:00:01"
#: Each harness has a subnet 10.77.x of its own; a machine with more bridges has leaks.
_SUBNETS = range(256)
#: Rules of a subnet have this priority plus its number: before the main table, and findable.
_RULE_PRIORITY = 7_000
#: `ip` answers in milliseconds; a machine that takes longer is out of order.
_IP_TIMEOUT_S = 20.0
#: A killed process is gone at once, unless it hangs in the kernel.
_DEATH_TIMEOUT_S = 20.0
_POLL_S = 0.02
#: Between the ends of two processes: as long as one takes, or longer.
_BREATH_S = 0.02
#: A process that starts others while it is signalled is caught by the next look; two suffice.
_SIGNAL_ROUNDS = 3
#: Of one subnet there are never more rules than pairs of machines.
_RULES_MAX = 100


class Impossible(RuntimeError):
    """This machine allows no namespaces; the message says why."""


class Network:
    """A context manager: a bridge with the harness on it, and namespaces that are added.

    `.1` is the harness, `.2` the sessions' store, `.3` Ray's store, all in the harness's own
    namespace; machines have `.10` and above.
    """

    def __init__(self) -> None:
        self._bridge = f"tb{os.getpid()}"
        self._stack = contextlib.ExitStack()
        self._addresses: dict[str, str] = {}
        self._cuts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._host = itertools.count(10)
        self._subnet = 0

    @property
    def store_address(self) -> str:
        """Where the sessions' store listens."""
        return self._address(2)

    @property
    def ray_store_address(self) -> str:
        """Where the store of Ray's control service listens."""
        return self._address(3)

    def __enter__(self) -> "Network":
        """Make the bridge.

        Raises:
            Impossible: not root, no iproute2, or the kernel refuses.
        """
        require_possible()
        with self._stack:
            self._subnet = _free_subnet()
            try:
                _ip("link", "add", self._bridge, "type", "bridge")
            except subprocess.CalledProcessError as error:
                raise Impossible(f"no bridge can be made: {error.stderr.strip()}") from None
            self._stack.callback(_remove_link, self._bridge)
            self._stack.callback(_remove_rules, _RULE_PRIORITY + self._subnet)
            for last in (1, 2, 3):
                _ip("address", "add", f"{self._address(last)}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            self._addresses["store"] = self.store_address
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, name: str) -> tuple[str, str]:
        """Add a machine; returns its namespace and its address."""
        namespace, last = _namespace(name), next(self._host)
        address, link = self._address(last), f"tv{os.getpid()}.{last}"
        self._stack.callback(remove_namespace, namespace)
        # By itself it would go only after the last socket of the namespace.
        self._stack.callback(_remove_link, link)
        _ip("netns", "add", namespace)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", link, "master", self._bridge, "up")
        inside = ("-n", namespace)
        _ip(*inside, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip(*inside, "link", "set", device, "up")
        # Leads nowhere; programs find their own address by asking for a way to the world.
        _ip(*inside, "route", "add", "default", "via", self._address(1))
        self._addresses[name] = address
        return namespace, address

    @contextlib.contextmanager
    def partition(self, a: str, b: str, *, one_way: bool = False) -> Iterator[None]:
        """Drop all that `a` sends to `b`, and unless `one_way` what `b` sends to `a`.

        `a` and `b` are machines or `store`. Partitions may overlap.
        """
        ways = [(a, b)] if one_way else [(a, b), (b, a)]
        with contextlib.ExitStack() as stack:
            for way in ways:
                stack.enter_context(self._cut(*way))
            yield

    @contextlib.contextmanager
    def _cut(self, source: str, target: str) -> Iterator[None]:
        way = (source, target)
        self._cuts[way] += 1
        try:
            if self._cuts[way] == 1:
                self._set_cut(source, target, cut=True)
            yield
        finally:
            self._cuts[way] -= 1
            if not self._cuts[way]:
                self._set_cut(source, target, cut=False)

    def _set_cut(self, source: str, target: str, *, cut: bool) -> None:
        address = self._addresses[target]
        if source == "store":
            # It answers connections and makes none, so that the kernel tells nobody. The harness
            # itself still has to reach the machine, so only packets from that address are lost.
            rule = ("from", self.store_address, "to", address, "blackhole")
            priority = ("priority", str(_RULE_PRIORITY + self._subnet))
            _ip("rule", "add" if cut else "del", *rule, *priority)
            return
        neighbour = ("-n", _namespace(source), "neighbour")
        if cut:
            words = ("replace", address, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
        else:
            words = ("del", address, "dev", "eth0")
        _ip(*neighbour, *words)

    def _address(self, last: int) -> str:
        return f"10.77.{self._subnet}.{last}"


def require_possible() -> None:
    """Raise Impossible, with the reason, where namespaces cannot be made."""
    if os.geteuid() != 0:
        raise Impossible("network namespaces need root")
    if shutil.which("ip") is None:
        raise Impossible("network namespaces need `ip` of iproute2")


def remove_left_overs() -> None:
    """Remove what harnesses left behind that were killed; their processes first."""
    for namespace in _namespaces():
        if ground.is_over(namespace.removeprefix(PREFIX).split("-")[1]):
            remove_namespace(namespace)
    for link, pid in re.findall(r"\b(t[bv](\d+)(?:\.\d+)?)[:@]", _ip("link", "show")):
        if ground.is_over(pid):
            _remove_link(link)
    for priority, subnet in re.findall(r"^(\d+):\s+from 10\.77\.(\d+)\.2 ", _ip("rule"), re.M):
        # A bridge that is gone has no rules; one that is there belongs to somebody alive.
        if f"10.77.{subnet}.1/" not in _ip("address", "show"):
            _remove_rules(int(priority))


def pids(namespace: str) -> list[int]:
    """Return the processes in a namespace; none if there is no such namespace."""
    done = subprocess.run(
        ["ip", "netns", "pids", namespace],
        capture_output=True,
        text=True,
        timeout=_IP_TIMEOUT_S,
        check=False,
    )
    return [int(word) for word in done.stdout.split()]


def signal_all(namespace: str, number: signal.Signals) -> None:
    """Send a signal to every process in a namespace, and to those that they start meanwhile."""
    for _ in range(_SIGNAL_ROUNDS):
        _signal(pids(namespace), number)


def kill_all(namespace: str) -> None:
    """Kill every process in a namespace at once, and those that they start meanwhile.

    Raises:
        TimeoutError: some do not die.
    """
    deadline_s = time.monotonic() + _DEATH_TIMEOUT_S
    while found := pids(namespace):
        _signal(found, signal.SIGKILL)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"processes of {namespace} do not die: {found}")
        time.sleep(_POLL_S)


def dismantle(namespace: str) -> None:
    """Let every process in a namespace stand still, then kill one after another.

    To end them all is a tenth of a second of the kernel's work. Real machines that go on would not
    pay for it, so what is measured of them must not.

    Raises:
        TimeoutError: some do not stand still, or do not die.
    """
    deadline_s = time.monotonic() + _DEATH_TIMEOUT_S
    while moving := [pid for pid in pids(namespace) if not procfs.stands_still(pid)]:
        signal_all(namespace, signal.SIGSTOP)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"processes of {namespace} do not stand still: {moving}")
    # Those that were started last come first: a parent's end would let children go on.
    for pid in sorted(pids(namespace), key=lambda pid: (procfs.started(pid), pid), reverse=True):
        _end(pid, deadline_s - time.monotonic())
        time.sleep(_BREATH_S)
    kill_all(namespace)


def _signal(found: list[int], number: signal.Signals) -> None:
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _end(pid: int, timeout_s: float) -> None:
    """Kill a process and await its end, which its parent need not have noticed."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], max(0.0, timeout_s))
        finally:
            os.close(process)


def remove_namespace(namespace: str) -> None:
    """End everything in a namespace and delete it, with its end of the bridge."""
    if namespace in _namespaces():
        kill_all(namespace)
        _ip("netns", "del", namespace)


def _namespace(machine: str) -> str:
    return f"{PREFIX}-{os.getpid()}-{machine}"


def _namespaces() -> list[str]:
    names = [line.split()[0] for line in _ip("netns", "list").splitlines()]
    return [name for name in names if re.match(rf"{PREFIX}-\d+-", name)]


def _free_subnet() -> int:
    taken = set(re.findall(r"10\.77\.(\d+)\.", _ip("address", "show")))
    return next(number for number in _SUBNETS if str(number) not in taken)


def _remove_link(link: str) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        _ip("link", "del", link)


def _remove_rules(priority: int) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        for _ in range(_RULES_MAX):
            _ip("rule", "del", "priority", str(priority))


def _ip(*words: str) -> str:
    done = subprocess.run(
        ["ip", *words], capture_output=True, text=True, timeout=_IP_TIMEOUT_S, check=True
    )
    return done.stdout
