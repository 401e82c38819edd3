"""The battery's machines reach each other, unless a partition is between them."""

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "chaos"))

import network

PORT = 7_000
#: Answers everybody who connects.
SERVER = f"""
import socket
with socket.create_server(("", {PORT})) as server:
    print("up", flush=True)
    while True:
        link, _ = server.accept()
        link.sendall(b"here")
        link.close()
"""
#: Ends with 0 if the server at the address that it is given answers. What is cut off is silent, so
#: only time tells.
CLIENT = f"""
import socket, sys
try:
    with socket.create_connection((sys.argv[1], {PORT}), 0.3) as link:
        sys.exit(link.recv(4) != b"here")
except TimeoutError:
    sys.exit(1)
"""
#: Says from whom the first datagram came.
LISTENER = f"""
import socket
with socket.socket(type=socket.SOCK_DGRAM) as link:
    link.bind(("", {PORT}))
    print("up", flush=True)
    _, (sender, _) = link.recvfrom(9)
    print(sender)
"""
SPEAKER = f"""
import socket, sys
socket.socket(type=socket.SOCK_DGRAM).sendto(b"here", (sys.argv[1], {PORT}))
"""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server is, and what leads a command there."""

    address: str
    inside: tuple[str, ...] = ()

    @contextlib.contextmanager
    def running(self, program: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a program here that says when it is up."""
        with subprocess.Popen(self._command(program), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == b"up\n"
                yield process
            finally:
                process.kill()

    def reaches(self, other: "Place") -> bool:
        """Whether the other's server answers from here."""
        return subprocess.run(self._command(CLIENT, other.address), check=False).returncode == 0

    def first_heard(self, *others: "Place") -> str:
        """Let others send a datagram each, in their order; returns the address of who is heard."""
        with self.running(LISTENER) as listener:
            for other in others:
                subprocess.run(other._command(SPEAKER, self.address), check=True)
            assert listener.stdout is not None
            return listener.stdout.readline().decode().strip()

    def _command(self, program: str, *words: str) -> list[str]:
        return [*self.inside, sys.executable, "-c", program, *words]


class Machines(msgspec.Struct, frozen=True, kw_only=True):
    """Two machines and what the harness's side is."""

    net: network.Network
    a: Place
    b: Place
    store: Place


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Servers on the second machine and on the harness's side."""
    try:
        network.require_possible()
        with network.Network() as net:
            a, b = (_add(net, name) for name in ("a", "b"))
            store = Place(address=net.store_address)
            with b.running(SERVER), store.running(SERVER):
                yield Machines(net=net, a=a, b=b, store=store)
    except network.Impossible as error:
        pytest.skip(str(error))


def _add(net: network.Network, name: str) -> Place:
    namespace, address = net.add(name)
    return Place(address=address, inside=("ip", "netns", "exec", namespace))


@pytest.mark.parametrize(
    ("ends", "one_way"),
    [(("a", "b"), False), (("a", "b"), True), (("a", "store"), False), (("store", "a"), True)],
)
def test_partition_cuts_and_heals(
    machines: Machines, ends: tuple[str, str], *, one_way: bool
) -> None:
    """No answer comes whichever way is cut; nobody else is concerned, and it ends."""
    other = machines.store if "store" in ends else machines.b
    with machines.net.partition(*ends, one_way=one_way):
        assert not machines.a.reaches(other)
        assert machines.b.reaches(machines.store)
    assert machines.a.reaches(other)


def test_one_way_leaves_the_other_way(machines: Machines) -> None:
    """What the second one sends still arrives."""
    with machines.net.partition("a", "b", one_way=True):
        assert machines.a.first_heard(machines.b, machines.store) == machines.b.address
        assert machines.b.first_heard(machines.a, machines.store) != machines.a.address


def test_partitions_may_overlap(machines: Machines) -> None:
    """What two partitions cut heals with the later one."""
    with contextlib.ExitStack() as first:
        first.enter_context(machines.net.partition("a", "b"))
        with machines.net.partition("a", "b", one_way=True):
            first.close()
            assert not machines.a.reaches(machines.b)
    assert machines.a.reaches(machines.b)


def test_left_overs_of_the_living_stay(machines: Machines) -> None:
    """Removing what dead runs left touches nothing of this one."""
    network.remove_left_overs()
    assert machines.a.reaches(machines.b)
    assert machines.b.reaches(machines.store)


def test_of_a_machine_that_is_lost_nothing_acts_on_the_end_of_the_rest(
    machines: Machines, tmp_path: pathlib.Path
) -> None:
    """A parent that would note its child's end, and start another, does neither."""
    noted = tmp_path / "noted"
    parent = f"""
import pathlib, subprocess
first = True
while True:
    with subprocess.Popen(["sleep", "60"]) as child:
        if first:
            print("up", flush=True)
        first = False
    pathlib.Path({str(noted)!r}).touch()
"""
    lost = _add(machines.net, "lost")
    namespace = lost.inside[-1]
    with lost.running(parent):
        assert len(network.pids(namespace)) == 2
        network.dismantle(namespace)
    assert network.pids(namespace) == []
    assert not noted.exists()
