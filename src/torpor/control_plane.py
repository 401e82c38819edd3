"""Keeps a gateway and a node agent on every Ray node that hosts sessions."""

import asyncio
import logging
from collections.abc import Collection
from typing import Any

import msgspec
import ray

from torpor import deployment, errors
from torpor.actors import node_agent, protocol, ray_compat
from torpor.router import gateway_actor
from torpor.storage import redis_store

log = logging.getLogger(__name__)

#: How often nodes are compared with what runs on them.
RECONCILE_S = 2.0
#: A new actor imports, connects and listens within this on a slow machine, or something is wrong.
START_TIMEOUT_S = 90.0
#: Evicting a full node takes some seconds; see `node_agent.RETIRE_S`.
RETIRE_TIMEOUT_S = 30.0


class Running(msgspec.Struct, kw_only=True):
    """What runs on one node."""

    node: str
    name: str
    #: `host:port`
    gateway: str
    gateway_actor: Any
    agent_actor: Any


class ControlPlane:
    """Starts what is missing; everything it starts is detached and lives on without it."""

    def __init__(self, place: deployment.Deployment) -> None:
        self._place = place
        self._store = redis_store.open(place)
        self.running: dict[str, Running] = {}
        # Wrapped once each: wrapping again would export the class to the cluster again.
        self._agent_class: Any = ray.remote(node_agent.NodeAgent)
        self._gateway_class: Any = ray.remote(gateway_actor.GatewayActor)

    async def reconcile(self) -> None:
        """Bring every node that hosts sessions into service, and forget those that are gone.

        Raises:
            StoreUnavailable, StoreBelowDurability, SigningKeyMissing, FailedPrecondition: what
                keeps a node from service, from its own process.
        """
        nodes = {node["NodeID"]: node for node in self._hosts()}
        for gone in self.running.keys() - nodes.keys():
            del self.running[gone]
        missing = [node for key, node in nodes.items() if key not in self.running]
        brought_up = await asyncio.gather(
            *(self._bring_up(node, self._port(node)) for node in missing), return_exceptions=True
        )
        started = [each for each in brought_up if isinstance(each, Running)]
        self.running |= {each.node: each for each in started}
        everywhere = list(self.running.values())
        if started:
            await asyncio.gather(
                *(_bounded(each.gateway_actor.refresh.remote(), RECONCILE_S) for each in everywhere)
            )
        alive = await asyncio.gather(*(_alive(each) for each in everywhere))
        for running, answers in zip(everywhere, alive, strict=True):
            if not answers:
                del self.running[running.node]
        await self._withdraw_lost(nodes)
        # Only now: what is wrong with one node must not keep the others from service.
        for each in brought_up:
            if isinstance(each, BaseException):
                raise each

    async def keep(self) -> None:
        """Reconcile until cancelled; what fails is tried again."""
        while True:
            await asyncio.sleep(RECONCILE_S)
            try:
                await self.reconcile()
            except Exception as error:
                # Whatever it is: nobody would look after the nodes any more.
                log.warning("reconcile failed: %r", error, extra={"action": "reconcile_failed"})

    async def retire(self) -> None:
        """Evict all sessions in order and end everything that was started."""
        everywhere = list(self.running.values())
        await asyncio.gather(
            *(_bounded(each.agent_actor.retire.remote(), RETIRE_TIMEOUT_S) for each in everywhere)
        )
        await asyncio.gather(
            *(_bounded(each.gateway_actor.stop.remote(), RETIRE_TIMEOUT_S) for each in everywhere)
        )
        for each in everywhere:
            ray.kill(each.agent_actor)
            ray.kill(each.gateway_actor)
        self.running.clear()
        await self.close()

    async def close(self) -> None:
        """Close the connections to the store; what was started lives on."""
        await self._store.close()

    async def _withdraw_lost(self, hosts: Collection[str]) -> None:
        """Take nodes off the list that Ray does not have any more, and end their terms.

        A node that comes back has another id, so the list would only ever grow. One that Ray wrote
        off, but whose agent still reaches the store, would keep sessions that nobody can call.
        """
        written_off = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
        for view in await self._store.nodes.views():
            node = view.record.node
            if view.alive and node in written_off:
                await self._store.nodes.drop_lease(node, view.record.incarnation)
            # One that is alive and not known here is another control plane's, brought up just now.
            if node in written_off or (not view.alive and node not in hosts):
                await self._store.nodes.withdraw(node)

    def _hosts(self) -> list[dict[str, Any]]:
        alive = [node for node in ray.nodes() if node["Alive"]]
        hosting = [
            node
            for node in alive
            if self._place.head_hosts_sessions or not ray_compat.is_head(node)
        ]
        return sorted(hosting, key=ray_compat.node_name)

    def _port(self, node: dict[str, Any]) -> int:
        """Return the port of a node's gateway; nodes that share a machine have one each."""
        place = self._place
        if place.gateway_port_step == 0:
            return place.gateway_port
        number = [each["NodeID"] for each in self._hosts()].index(node["NodeID"])
        taken = {int(each.gateway.rpartition(":")[2]) for each in self.running.values()}
        port = place.gateway_port + number * place.gateway_port_step
        while port in taken:
            port += place.gateway_port_step
        return port

    async def _bring_up(self, node: dict[str, Any], port: int) -> Running:
        place, node_id, name = self._place, str(node["NodeID"]), ray_compat.node_name(node)
        common = {
            "namespace": protocol.NAMESPACE,
            "lifetime": "detached",
            "num_cpus": 0,
            "max_restarts": 0,
            "get_if_exists": True,
            "label_selector": {"ray.io/node-id": node_id},
            "enable_task_events": False,
        }
        front = self._gateway_class.options(
            name=protocol.gateway_name(node_id),
            max_concurrency=gateway_actor.CONCURRENCY_MAX,
            **common,
        ).remote(place)
        bound = await _within(front.start.remote(place.gateway_host, port))
        host = place.gateway_host
        everywhere = host in ("0.0.0.0", "::")  # noqa: S104
        address = f"{node['NodeManagerAddress'] if everywhere else host}:{bound}"
        cpus = float(node["Resources"].get("CPU", 0)) or 1.0
        agent = self._agent_class.options(
            name=protocol.node_agent_name(node_id),
            max_concurrency=node_agent.CONCURRENCY_MAX,
            **common,
        ).remote(place, node_id, name, address, cpus)
        await _within(agent.start.remote())
        return Running(
            node=node_id, name=name, gateway=address, gateway_actor=front, agent_actor=agent
        )


async def _within(call: Any) -> Any:
    try:
        return await asyncio.wait_for(call, START_TIMEOUT_S)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, errors.TorporError):
            raise error.cause from None
        raise


async def _bounded(call: Any, timeout_s: float) -> None:
    try:
        await asyncio.wait_for(call, timeout_s)
    except (TimeoutError, ray.exceptions.RayError) as error:
        log.info("no answer: %s", type(error).__name__, extra={"action": "no_answer"})


async def _alive(running: Running) -> bool:
    """Whether both actors still live; a dead one is made anew by the next round."""
    for actor, name, call in (
        (
            running.agent_actor,
            protocol.node_agent_name(running.node),
            running.agent_actor.observe.remote(),
        ),
        (
            running.gateway_actor,
            protocol.gateway_name(running.node),
            running.gateway_actor.__ray_ready__.remote(),
        ),
    ):
        try:
            await asyncio.wait_for(call, RECONCILE_S * 5)
        except ray.exceptions.ActorDiedError:
            ray.kill(actor)
            return False
        except (TimeoutError, ray.exceptions.RayError):
            # Slow, not to be reached now, or dead: a death is told once, and who does not hear it
            # because Ray's control service is just restarting hears "unavailable" ever after.
            if await _is_gone(name):
                return False
    return True


async def _is_gone(name: str) -> bool:
    """Whether Ray has no actor of this name any more; False while it cannot say."""
    try:
        look = asyncio.to_thread(ray.get_actor, name, protocol.NAMESPACE)
        await asyncio.wait_for(look, RECONCILE_S)
    except ValueError:
        return True
    except (TimeoutError, ray.exceptions.RayError):
        return False
    return False
