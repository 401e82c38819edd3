"""Binding slots, without Ray: what becomes of one whose wake fails."""

import asyncio
import pathlib
import tempfile
from typing import Any

import pytest

from torpor import clock, errors
from torpor.actors import lane_address, protocol, slot_process, slot_stock, slots
from torpor.storage import keyring, records
from torpor.testing import eventually, store_samples

KIND = slot_stock.Kind(tenant="acme", agent=store_samples.agent_version("notebook", "digest"))


class Slot(slot_process.Slot):
    """A slot whose process is on paper."""

    ended = False

    async def end(self) -> None:
        """Be gone."""
        self.ended = True


class Vacated:
    """Notes which owners are cleared."""

    def __init__(self) -> None:
        #: Nonces, and whether the process is said to have died.
        self.vacated: list[tuple[str, bool]] = []

    async def vacate(self, _: object, *, nonce: str, died: bool, **__: object) -> bool:
        """Note it."""
        self.vacated.append((nonce, died))
        return True


async def test_a_slot_whose_files_cannot_be_moved_is_not_left_behind(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails between taking a slot and its boot, the process ends, the caller hears."""
    key = store_samples.key()
    keyring.create(tmp_path / "keys")
    place = store_samples.deployment_at("")
    sessions: Any = None
    maker = slots.SlotMaker(
        place, keyring.load(tmp_path / "keys"), sessions, node="node-1", node_name="node-1"
    )
    made: list[Slot] = []

    async def start(kind: slot_stock.Kind) -> slot_process.Slot:
        made.append(Slot(kind, "actor", tmp_path / "slot"))
        return made[-1]

    vacated: list[str] = []

    class Sessions:
        """Says what it is asked for, and notes who is cleared."""

        async def head(self, _: object) -> records.Head:
            """Return a session that nobody holds."""
            return store_samples.new(key).head()

        async def vacate(self, _: object, *, nonce: str, **__: object) -> bool:
            """Note it."""
            vacated.append(nonce)
            return True

    class Broken:
        """What is kept of sessions, on a disk that fails."""

        def __contains__(self, _: object) -> bool:
            return True

        def take(self, *_: object) -> bool:
            """Fail."""
            raise PermissionError("read-only file system")

    maker.stock = slot_stock.Stock(start, clock.SystemClock(), starts_max=1)
    monkeypatch.setattr(maker, "kept", Broken())
    monkeypatch.setattr(maker, "_sessions", Sessions())
    request = protocol.Activate(
        key=key,
        observed_epoch=0,
        observed_incarnation="",
        agent=store_samples.agent_version("notebook", "digest"),
        deadline_s=60.0,
    )
    with pytest.raises(errors.ActivationFailed, match="read-only"):
        await maker.make(request, "incarnation", "nonce")
    assert [slot.ended for slot in made] == [True]
    assert vacated == ["nonce"], "it may have claimed the session"


@pytest.mark.parametrize(
    ("refusal", "died"),
    [
        (errors.CheckpointCorrupt, False),
        (errors.StoreUnavailable, False),
        (errors.OwnerUnreachable, True),
        (TimeoutError, True),
    ],
)
async def test_a_session_that_cannot_be_loaded_is_buried_once(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: type[Exception],
    *,
    died: bool,
) -> None:
    """Its process says why and ends; the owner is cleared, and the files stay on the node.

    One that says so has not died of a message. Its place is free before its files are removed.
    """
    keyring.create(tmp_path / "keys")
    sessions: Any = Vacated()
    maker = slots.SlotMaker(
        store_samples.deployment_at(""),
        keyring.load(tmp_path / "keys"),
        sessions,
        node="node-1",
        node_name="node-1",
    )
    kept: list[pathlib.Path] = []
    monkeypatch.setattr(slots.remains, "keep", lambda _, folder, __: kept.append(folder))
    removing = asyncio.Event()

    async def remove(_: pathlib.Path) -> None:
        await removing.wait()

    monkeypatch.setattr(slot_process, "clean", remove)
    slot = Slot(KIND, "actor", tmp_path / "slot")
    head = store_samples.new(store_samples.key()).head()
    slot.bind(store_samples.claim(head, nonce="nonce"))

    async def refuse(_: float) -> None:
        slot.dead.set()
        raise refusal

    monkeypatch.setattr(slot, "booted", refuse)
    raised = errors.ActivationFailed if died else refusal
    with pytest.raises(raised):
        await maker.see_up(slot)
    assert slot.ended
    assert sessions.vacated == [("nonce", died)]
    assert kept == [slot.folder]
    monkeypatch.setattr(slots, "CLEANINGS_MAX", 1)
    again = asyncio.create_task(maker._give_up(slot, refusal()))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not again.done(), "too many folders are being removed"
    removing.set()
    await again
    await eventually.until(lambda: not maker._cleaning)


async def test_what_is_read_only_is_removed_too(tmp_path: pathlib.Path) -> None:
    """A cache of modules makes its folders so; nothing of a slot stays on the disk."""
    inner = tmp_path / "slot" / "workspace" / "cache"
    inner.mkdir(parents=True)
    (inner / "module").touch()
    inner.chmod(0o555)
    inner.parent.chmod(0o555)
    await slot_process.clean(tmp_path / "slot")
    assert not (tmp_path / "slot").exists()
    await slot_process.clean(tmp_path / "slot")


async def test_the_socket_of_a_process_that_was_killed_is_removed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was never bound is killed, and cannot remove it itself."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    path = lane_address.socket_path(lane_address.sockets_folder(), "ab")
    path.touch()
    slot = Slot(KIND, "actor", tmp_path / "slot")
    slot.lane = str(lane_address.LaneAddress(host="127.0.0.1", port=1, path=str(path)))
    slot.dead.set()
    await slot.discard()
    assert not path.exists()


async def test_a_process_that_does_not_die_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was never bound to a session."""
    monkeypatch.setattr(slot_process, "DEATH_TIMEOUT_S", 0.0)
    monkeypatch.setattr(slot_process.os, "kill", lambda *_: None)
    slot = slot_process.Slot(KIND, "an-actor", tmp_path)
    slot.pid = 1
    with pytest.raises(errors.OwnerUnreachable) as raised:
        await slot.kill()
    assert raised.value.ids["actor"] == "an-actor"
