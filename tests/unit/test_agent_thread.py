"""The thread that agent code runs on."""

import asyncio
import pathlib
import sys
import threading
import time
from typing import Any, ClassVar

import pytest

import torpor
from torpor import errors, messages
from torpor.actors import agent_thread, turn_context
from torpor.storage import local_blobs, records, snapshot, state
from torpor.testing import eventually

#: What an `Obedient` raises when it is told to.
RAISED = {
    "raise": KeyError("missing"),
    "refuse": errors.InvalidField("not like that", field="x"),
    "cancel": asyncio.CancelledError(),
    "exit": SystemExit(3),
    "odd name": ValueError("no file \udcff"),
    "long": ValueError("x" * (1 << 20)),
}
#: And what it returns.
RETURNED = {"say odd name": "\udcff", "number": 7, "nothing": None}


class Obedient(torpor.Agent):
    """Does what the first word of a message says."""

    lingering: ClassVar[asyncio.Task[None] | None] = None

    def __init__(self) -> None:
        self.said: list[str] = []
        self.woken = 0

    async def on_wake(self) -> None:
        """Note it, and the thread."""
        self.woken += 1
        self.thread = threading.current_thread().name

    async def on_evict(self) -> None:
        """Fail: nothing may depend on it."""
        raise RuntimeError("cannot say goodbye")

    async def on_message(self, ctx: torpor.Context, message: torpor.Message) -> Any:
        """Do it."""
        self.said.append(message.text)
        match message.text:
            case _ if message.text in RAISED:
                raise RAISED[message.text]
            case "wait":
                await asyncio.sleep(3600)
            case "stubborn":
                await _stubborn()
            case "block":
                time.sleep(1.0)  # noqa: ASYNC251 - what badly written agents do
            case "lock":
                self.lock = threading.Lock()
            case "exit later":
                asyncio.get_running_loop().call_soon(sys.exit, 3)
            case "linger":
                Obedient.lingering = asyncio.create_task(asyncio.sleep(3600))
            case _ if message.text in RETURNED:
                return RETURNED[message.text]
            case "reply" | "odd reply":
                odd = message.text == "odd reply"
                return torpor.Reply(text="both", data={"n": object() if odd else (1, 2)})
            case "file":
                (ctx.workspace / "f").write_text("content")
        return f"{len(self.said)} {threading.current_thread().name}"


async def _stubborn() -> None:
    until_s = time.monotonic() + 2.0
    while time.monotonic() < until_s:
        try:
            await asyncio.sleep(2.0)
        except asyncio.CancelledError:
            continue


class Stage:
    """An agent on its thread, with a workspace."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.workspace = folder / "workspace"
        self.workspace.mkdir()
        self.thread = agent_thread.AgentThread()
        self._snapshotter = snapshot.Snapshotter(
            self.workspace, local_blobs.LocalBlobStore(folder), "acme", 1 << 20
        )

    async def run(
        self, text: str, timeout_s: float = 30.0
    ) -> agent_thread.TurnResult | agent_thread.TurnFailure:
        """Run one turn."""
        ctx = turn_context.TurnContext(
            key=records.SessionKey("acme", "chat"),
            turn=1,
            workspace=self.workspace,
            history=None,
            stream=lambda _: None,
        )
        return await self.thread.run_turn(
            ctx, messages.Message(text=text), self._snapshotter, timeout_s=timeout_s
        )


@pytest.fixture
async def stage(tmp_path: pathlib.Path) -> Stage:
    """An `Obedient` that is awake."""
    made = Stage(tmp_path)
    await made.thread.wake(Obedient)
    return made


async def test_turn_ends_as_reply_state_and_files(stage: Stage) -> None:
    """A turn leaves its reply, the pickled agent and a snapshot, all of the same moment."""
    result = await stage.run("file")
    assert isinstance(result, agent_thread.TurnResult)
    assert result.reply == torpor.Reply(text="1 agent")
    loaded = state.load(result.state)
    assert isinstance(loaded, Obedient)
    assert (loaded.said, loaded.woken, loaded.thread) == (["file"], 1, "agent")
    assert result.snapshot.entries == 1


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("nothing", torpor.Reply()),
        ("say odd name", torpor.Reply(text="\\udcff")),
        ("reply", torpor.Reply(text="both", data={"n": [1, 2]})),
    ],
)
async def test_replies_of_all_kinds(stage: Stage, text: str, reply: torpor.Reply) -> None:
    """Nothing is an empty reply; data comes out as JSON would have it."""
    result = await stage.run(text)
    assert isinstance(result, agent_thread.TurnResult)
    assert result.reply == reply


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("raise", errors.TurnFailed, "KeyError: 'missing'"),
        ("refuse", errors.InvalidField, "not like that"),
        ("cancel", errors.TurnFailed, "CancelledError"),
        ("exit", errors.TurnFailed, "SystemExit: 3"),
        ("odd name", errors.TurnFailed, "no file \\udcff"),
        ("long", errors.TurnFailed, "ValueError: xxx"),
        ("number", errors.TurnFailed, "returned int"),
        ("odd reply", errors.InvalidField, "reply.data"),
        ("lock", errors.StateNotPicklable, "self.lock"),
    ],
)
async def test_failures(
    stage: Stage, text: str, reason: type[errors.TorporError], words: str
) -> None:
    """Each failure of the agent is a result with its reason, its words and a bounded traceback."""
    failure = await stage.run(text)
    assert isinstance(failure, agent_thread.TurnFailure)
    assert failure.reason == reason.reason
    assert words in failure.message
    assert len(failure.traceback.splitlines()) <= agent_thread.TRACEBACK_LINES_MAX
    stored = f"{failure.message}{failure.traceback}".encode()
    assert len(stored) <= 2 * agent_thread.FAILURE_CHARS_MAX


async def test_time_over_while_awaiting(stage: Stage) -> None:
    """A turn that awaits is cancelled at its limit, and the thread goes on."""
    failure = await stage.run("wait", timeout_s=0.05)
    assert isinstance(failure, agent_thread.TurnFailure)
    assert failure.reason == errors.TurnTimedOut.reason
    assert isinstance(await stage.run("file"), agent_thread.TurnResult)


@pytest.mark.parametrize("text", ["stubborn", "block"])
async def test_time_over_and_no_end(
    stage: Stage, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that neither ends nor hears of its end gives the thread up; this loop stays free."""
    monkeypatch.setattr(agent_thread, "CANCEL_GRACE_S", 0.1)
    turn = asyncio.create_task(stage.run(text, timeout_s=0.05))
    beats = 0
    while not turn.done():
        await asyncio.sleep(0.01)
        beats += 1
    assert beats > 3
    failure = await turn
    assert isinstance(failure, agent_thread.TurnFailure)
    assert failure.reason == errors.TurnTimedOut.reason


async def test_the_end_of_the_thread(stage: Stage) -> None:
    """What the agent has started ends with it, and nothing of the thread stays."""
    await stage.run("linger")
    lingering = Obedient.lingering
    assert lingering is not None
    stage.thread.close()
    await eventually.until(lambda: not stage.thread._thread.is_alive())
    assert lingering.cancelled()
    assert stage.thread._loop.is_closed()
    stage.thread.close()


async def test_the_end_of_a_thread_whose_tasks_answer_with_an_exit(stage: Stage) -> None:
    """They end one after the other, also if the loop was asked to stop twice meanwhile."""
    tasks: list[asyncio.Task[None]] = []
    ended = []

    async def stubborn(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)
            raise SystemExit(number)

    async def begin() -> None:
        tasks.extend(asyncio.create_task(stubborn(number)) for number in range(3))
        await asyncio.sleep(0)

    loop = stage.thread._loop

    def stop_twice() -> None:
        # As where an exit ends the loop while it is being closed.
        stage.thread._over = True
        loop.stop()
        loop.call_soon(loop.stop)

    await stage.thread.call(begin())
    loop.call_soon_threadsafe(stop_twice)
    await eventually.until(lambda: not stage.thread._thread.is_alive())
    assert sorted(ended) == [0, 1, 2]
    assert loop.is_closed()


async def test_exit_in_a_callback_leaves_the_thread_at_work(stage: Stage) -> None:
    """What the agent started may end the loop, but not the turns after it."""
    await stage.run("exit later")
    assert isinstance(await stage.run("file"), agent_thread.TurnResult)


async def test_exit_while_waking_is_an_error(tmp_path: pathlib.Path) -> None:
    """An agent that exits instead of waking fails its activation at once."""

    class Quitter(torpor.Agent):
        async def on_wake(self) -> None:
            sys.exit(3)

    with pytest.raises(errors.TurnFailed, match="SystemExit"):
        await Stage(tmp_path).thread.wake(Quitter)


async def test_full_storage_is_not_the_agents_fault(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps a turn's files from being stored is raised, not made into the turn's failure."""

    def full() -> snapshot.Snapshot:
        raise errors.StorageFull

    monkeypatch.setattr(stage._snapshotter, "snapshot", full)
    with pytest.raises(errors.StorageFull):
        await stage.run("file")


async def test_errors_of_goodbye_end_there(stage: Stage) -> None:
    """An agent that fails in `on_evict`, and one that never woke, are let go without an error."""
    await stage.thread.evict()
    await agent_thread.AgentThread().evict()


async def test_errors_of_waking_are_raised(tmp_path: pathlib.Path) -> None:
    """An agent that cannot wake is the activation's failure."""

    class Sleepyhead(torpor.Agent):
        async def on_wake(self) -> None:
            raise OSError("not yet")

    with pytest.raises(OSError, match="not yet"):
        await Stage(tmp_path).thread.wake(Sleepyhead)
