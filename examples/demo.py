"""The main job, on real input: `make demo`.

Six notebook sessions on three Ray nodes work on public data sets. One is evicted and wakes on
another node; one's process is killed in the middle of a turn; a whole node is lost. At the end
every acknowledged turn is looked for, in variables, history and files.
"""

import asyncio
import contextlib
import importlib.resources
import os
import pathlib
import signal
import sys
import tempfile
import time

import msgspec
import rich.console
import rich.table

import torpor
from torpor.client import Client
from torpor.client.sessions import Session
from torpor.dev import local

#: session → the data set it works on, the column to plot, the column to group by.
WORK = {
    "seattle": ("seattle-weather.csv", "temp_max", "weather"),
    "airports": ("airports.csv", "latitude", "state"),
    "stocks": ("stocks.csv", "price", "symbol"),
    "temps": ("seattle-temps.csv", "temp", None),
    "sf": ("sf-temps.csv", "temp", None),
    "jobs": ("us-employment.csv", "nonfarm", None),
}
NODES = 3
#: The demo gives up on any one step after this: it must end by itself.
STEP_TIMEOUT_S = 90.0

PLOT = """
import matplotlib.pyplot as plt
axes = df[{column!r}].plot(title={name!r})
axes.figure.savefig("plot.png"); plt.close(axes.figure)
acknowledged.append("plot")
float(df[{column!r}].mean().round(3))
"""


class Wake(msgspec.Struct, frozen=True, kw_only=True):
    """A wake that was measured from outside: from the call to the committed reply."""

    session: str
    why: str
    before: str
    after: str
    latency_ms: float


class Demo:
    """What happened so far, and what was promised."""

    def __init__(self, here: local.LocalDeployment, client: Client) -> None:
        self.here = here
        self.client = client
        self.console = rich.console.Console(width=120)
        self.began_s = time.monotonic()
        self.sessions: dict[str, Session] = {}
        #: session → what it was told and has acknowledged.
        self.promised: dict[str, list[str]] = {}
        self.wakes: list[Wake] = []
        self.turns = 0

    def say(self, text: str) -> None:
        """Print what happens now."""
        self.console.print(f"[dim]{time.monotonic() - self.began_s:5.1f} s[/dim]  {text}")

    async def tell(self, name: str, code: str, promise: str = "") -> str:
        """Run a cell; with `promise`, remember that its effect was acknowledged."""
        if promise and "acknowledged.append" not in code:
            code = f"acknowledged.append({promise!r})\n{code}"
        reply = await asyncio.wait_for(self.sessions[name].send(code), STEP_TIMEOUT_S)
        if reply.data["error"]:
            raise RuntimeError(f"{name}: {reply.text}")
        self.turns += 1
        if promise:
            self.promised[name].append(promise)
        return reply.text

    async def node_of(self, name: str) -> str:
        """Return the name of the node that the session woke on last."""
        woken = [e async for e in self.sessions[name].events(types=["session.woken"])]
        return str(woken[-1].data["node"]) if woken else "nowhere"

    async def wake(self, name: str, why: str, code: str, promise: str) -> str:
        """Run a cell in a session that has to be woken for it, and measure."""
        before = await self.node_of(name)
        began_s = time.monotonic()
        text = await self.tell(name, code, promise)
        latency_ms = (time.monotonic() - began_s) * 1000
        after = await self.node_of(name)
        wake = Wake(session=name, why=why, before=before, after=after, latency_ms=latency_ms)
        self.wakes.append(wake)
        return text


async def load_and_plot(demo: Demo, name: str) -> None:
    """Bring a data set into a session, read it, and plot a column."""
    file, column, group = WORK[name]
    data = importlib.resources.files("vega_datasets").joinpath("_data", file).read_bytes()
    demo.sessions[name] = await demo.client.sessions.create("notebook", session_id=name)
    demo.promised[name] = []
    await demo.sessions[name].files.write(file, data)
    read = f"acknowledged = ['read']\nimport pandas as pd\ndf = pd.read_csv({file!r})\ndf.shape"
    shape = await demo.tell(name, read)
    demo.promised[name].append("read")
    mean = await demo.tell(name, PLOT.format(column=column, name=name), "plot")
    if group:
        await demo.tell(name, f"by = df.groupby({group!r})[{column!r}].mean()\nlen(by)", "group")
    where = await demo.node_of(name)
    demo.say(f"{name:9} {file:20} {shape:12} mean {column} {mean:9} on {where}")


async def evict_and_move(demo: Demo) -> None:
    """Evict a session whose node then gets busy: it wakes on another one, as it was."""
    places = {name: await demo.node_of(name) for name in demo.sessions}
    name = next(n for n in places if list(places.values()).count(places[n]) > 1)
    neighbour = next(n for n in places if n != name and places[n] == places[name])
    info = await demo.sessions[name].evict()
    demo.say(f"evicted {name} from {places[name]}: resident={info.resident}, no process, no memory")
    demo.say(f"{neighbour}, beside it, begins to compute: {places[name]} is busy now")
    heavy = "sum(i * i for i in range(60_000_000)) % 7"
    computing = asyncio.create_task(demo.tell(neighbour, heavy, "heavy"))
    await until_busy(demo, places[name])
    text = await demo.wake(name, "evicted", "df.shape, open('plot.png', 'rb').read(4)", "moved")
    last = demo.wakes[-1]
    demo.say(
        f"woke {name} on [bold]{last.after}[/bold] (was on {last.before}) in "
        f"{last.latency_ms:.0f} ms; variable and file are there: {text}"
    )
    await computing


async def until_busy(demo: Demo, node: str) -> None:
    """Return once the node's published load shows it, or after some seconds."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(contextlib.suppress(TimeoutError))
        await stack.enter_async_context(asyncio.timeout(12))
        while True:
            loads = {each.name: each.cpu for each in await demo.client.admin.nodes()}
            if loads[node] > 0.6 and loads[node] > 1.5 * min(loads.values()):
                return
            await asyncio.sleep(0.5)


async def kill_in_a_turn(demo: Demo) -> None:
    """Kill -9 a session's process while it works; the caller still gets the reply."""
    name = "stocks"
    pid = int(await demo.tell(name, "import os, time\nos.getpid()"))
    slow = "time.sleep(2)\nbest = df.groupby('symbol').price.max().idxmax()\nbest"
    answer = asyncio.create_task(demo.wake(name, "killed in a turn", slow, "best"))
    await asyncio.sleep(1)
    os.kill(pid, signal.SIGKILL)
    demo.say(f"kill -9 {pid}: the process of {name}, in the middle of a turn")
    text = await answer
    last = demo.wakes[-1]
    demo.say(f"{name} answers {text} from {last.after}: the turn ran again from its start, once")


async def lose_a_node(demo: Demo) -> None:
    """Take a whole node away; its sessions come back elsewhere once its lease has lapsed."""
    places = {name: await demo.node_of(name) for name in demo.sessions}
    crowd = {
        f"node-{i}": [n for n, where in places.items() if where == f"node-{i}"]
        for i in range(2, NODES + 1)
    }
    lost = max(crowd, key=lambda node: len(crowd[node]))
    demo.say(f"{lost} loses its power, and with it {', '.join(crowd[lost])}")
    demo.here.cluster.kill_node(lost)
    await asyncio.gather(
        *(demo.wake(name, f"{lost} lost", "df.shape", "survived") for name in crowd[lost])
    )
    for wake in demo.wakes[-len(crowd[lost]) :]:
        demo.say(f"{wake.session} is back on {wake.after} after {wake.latency_ms / 1000:.1f} s")


async def verify(demo: Demo) -> list[str]:
    """Look for everything that was acknowledged; returns what is missing or doubled."""
    wrong = []
    for name, session in demo.sessions.items():
        kept = (await session.send("acknowledged")).text
        if kept != repr(demo.promised[name]):
            wrong.append(f"{name}: variables say {kept}, acknowledged was {demo.promised[name]}")
        events = [event async for event in session.events()]
        if [event.seq for event in events] != list(range(1, len(events) + 1)):
            wrong.append(f"{name}: the history has a gap")
        asked = [e.data["request_id"] for e in events if e.type == "user.message"]
        answered = [e.data["request_id"] for e in events if e.type == "agent.message"]
        if asked != answered or len(set(asked)) != len(asked):
            wrong.append(f"{name}: a message without its answer, or one that ran twice")
        plot = await session.files.read("plot.png")
        if not plot.startswith(b"\x89PNG"):
            wrong.append(f"{name}: plot.png is not what it was")
    return wrong


def report(demo: Demo, wrong: list[str]) -> None:
    """Print the table."""
    table = rich.table.Table("session", "why", "from", "to", "wake (call to reply)")
    for wake in demo.wakes:
        latency = f"{wake.latency_ms:8.0f} ms"
        table.add_row(wake.session, wake.why, wake.before, wake.after, latency)
    demo.console.print(table)
    moves = sum(wake.before != wake.after for wake in demo.wakes)
    demo.console.print(
        f"sessions {len(demo.sessions)} · turns {demo.turns} · wakes {len(demo.wakes)} · "
        f"moves {moves} · durability fsync · "
        + ("[red]LOST: " + "; ".join(wrong) if wrong else "[green]nothing lost, nothing ran twice")
    )


async def run(folder: pathlib.Path) -> int:
    """Run everything; returns the exit code."""
    console = rich.console.Console(stderr=True)
    options = local.LocalOptions(folder=folder, nodes=NODES, port=0)
    async with (
        local.LocalDeployment(options, say=lambda text: console.print(f"[dim]{text}")) as here,
        torpor.connect(here.gateways[0], api_key=here.api_key) as client,
    ):
        demo = Demo(here, client)
        await client.agents.register("torpor.agents.notebook:Notebook")
        demo.say(f"{NODES} Ray nodes, gateways on {', '.join(here.gateways)}")
        demo.say(f"{len(WORK)} sessions of one agent at once: read, compute, plot")
        await asyncio.gather(*(load_and_plot(demo, name) for name in WORK))
        await evict_and_move(demo)
        await kill_in_a_turn(demo)
        await lose_a_node(demo)
        wrong = await verify(demo)
        report(demo, wrong)
    return 1 if wrong else 0


def main() -> None:
    """Run the demo in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="torpor-demo-", ignore_cleanup_errors=True) as folder:
        sys.exit(asyncio.run(run(pathlib.Path(folder))))


if __name__ == "__main__":
    main()
