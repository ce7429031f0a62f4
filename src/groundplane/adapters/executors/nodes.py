"""Attempts on nodes: whatever the way to their desks, one set of rules for placing, watching and ending them.

An attempt of one member keeps its id on its node; member 2 of 4 is `<attempt id>.r2of4`. All members are reserved
before one is started, and the placement is written down in between: it moves before that moment and never after.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from groundplane.adapters.executors.channels import Document, Unanswered, Unsent
from groundplane.adapters.executors.keeping import CheckpointCalls
from groundplane.adapters.executors.links import Link, node_of, offer_of
from groundplane.adapters.executors.members import as_seen_there, environment, members_of, split
from groundplane.adapters.executors.observing import (
    OTHER_ENDED,
    as_observation,
    as_sample,
    readable_observation,
    together,
)
from groundplane.adapters.executors.placements import Placed, Placements
from groundplane.adapters.executors.staging import StagingCalls
from groundplane.adapters.executors.terminals import TerminalCalls
from groundplane.adapters.executors.ways import WayCalls
from groundplane.domain.node import Node, Placement
from groundplane.domain.order import LogChunk, Order, Sample
from groundplane.domain.planning.plan import Offer
from groundplane.domain.preflight import CheckResult, results_of
from groundplane.domain.run import EndReason, Observation
from groundplane.errors import Conflict, GroundError, InvalidInput, Unavailable
from groundplane.ports import Clock, Unplaced
from groundplane.units import format_bytes

START_PATIENCE_S = 75.0
LOOK_PATIENCE_S = 2.0
FIRST_LOOK_PATIENCE_S = 8.0
"""For a node that was never heard: a connection is opened, and the runner copied there."""
LOOK_BATCH = 200
SPOT_PATIENCE_S = 15.0
OUTPUTS_PART = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """What every order of this pool tells its runner beside the job: limits in bytes, the sampling period."""

    log_line_limit_bytes: int = 65_536
    log_limit_bytes: int = 2**30
    sample_period_s: float = 2.0
    nvml_library: str = "libnvidia-ml.so.1"
    spot_metadata_url: str = "http://169.254.169.254"


class NodesExecutor(CheckpointCalls, StagingCalls, TerminalCalls, WayCalls):
    """ports.Executor over nodes. `placements` is None for a pool of one node, where there is nothing to choose."""

    def __init__(
        self,
        pool: str,
        links: Sequence[Link],
        clock: Clock,
        *,
        placements: Placements | None = None,
        options: RunnerOptions | None = None,
        shared_dir: str | None = "",
        gone_limit_s: float | None = None,
    ) -> None:
        self._pool, self._clock = pool, clock
        self._links = {link.name: link for link in links}
        self._placements = placements
        self._options = options or RunnerOptions()
        # "" keeps an order's own folders (this machine); None puts them on the node; else a folder all nodes share.
        self._shared_dir = shared_dir
        self._gone_limit_s = gone_limit_s  # the dead-man timer of orders that set none
        self._starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ways: dict[str, asyncio.Task[None]] = {}
        self._fit: dict[tuple[str, tuple[str, ...], str], float] = {}
        self._opened_at = clock.now()

    # ---- what there is

    async def offers(self) -> Sequence[Offer]:
        """One offer per kind of node that answers now. Unavailable when none does."""
        await self._ask_all("facts", self._keep_facts)
        kinds: dict[tuple[object, ...], list[Link]] = defaultdict(list)
        for link in self._links.values():
            if link.facts and link.failure is None:
                cards = [(card["name"], card["memory_bytes"]) for card in link.facts["accelerators"]]
                price = link.price_microusd_per_hour, link.price_as_of
                kinds[link.node_type, link.facts["cpus"], link.facts["memory_bytes"], tuple(cards), price].append(link)
        if not kinds:
            raise next(link.failure for link in self._links.values() if link.failure is not None)
        today = self._clock.now().date()
        alone, serves = self._shared_dir is None, self._placements is None
        return [offer_of(self._pool, alike, today, alone=alone, serves=serves) for alike in kinds.values()]

    async def nodes(self) -> Sequence[Node]:
        with contextlib.suppress(Unavailable):
            await self._ask_all("facts", self._keep_facts)
        return [node_of(self._pool, link) for link in self._links.values()]

    async def spot_blind(self) -> Mapping[str, str]:
        async def ask(link: Link) -> tuple[str, str]:
            try:
                said = await self._ask(link, "spot", SPOT_PATIENCE_S, url=self._options.spot_metadata_url)
            except Unavailable:  # whether it answers is told elsewhere
                return link.name, ""
            return link.name, str(said["trouble"])

        answers = await asyncio.gather(*(ask(link) for link in self._links.values() if link.failure is None))
        return {node: trouble for node, trouble in answers if trouble}

    async def preflight(self, order: Order, node: str) -> Sequence[CheckResult]:
        """On the cards that are free, else on the first ones: a check disturbs nobody for long."""
        link = self._link(node)
        document = self._documents(replace(order, placements=(), nodes=1), Placed(members=(node,)))[0]
        if order.accelerators:
            self._keep_facts(link, await self._ask(link, "facts"))
            cards = sorted(link.facts["accelerators"], key=lambda card: (bool(card["held_by"]), card["index"]))
            document["accelerator_indexes"] = [card["index"] for card in cards[: order.accelerators]]
        budget_s = order.preflight.budget_s if order.preflight else 0.0
        said = await self._ask(link, "preflight", budget_s + START_PATIENCE_S, order=document)
        return results_of(said["results"])

    # ---- orders

    async def start(self, order: Order) -> None:
        async with self._starting.setdefault(order.attempt_id, asyncio.Lock()):
            try:
                await self._start(order)
            except OSError as error:
                raise Unavailable(
                    f"{order.attempt_id} can't be written down: {error}", "free disk space or rights under GROUND_HOME"
                ) from error

    async def stop(self, attempt_id: str, reason: EndReason) -> None:
        """Works before the start too: an attempt started later then ends at once, unrun."""
        placed = self._find(attempt_id)
        if self._placements is not None and (placed is None or not placed.members):
            before = placed or Placed()
            if not before.released:
                self._placements.put(attempt_id, replace(before, stop=before.stop or reason.value))
            return
        assert placed is not None
        await self._each_member(attempt_id, placed, "stop", reason=reason.value)

    async def release(self, attempt_id: str) -> None:
        """Conflict while a member is at work: its accelerators are not free yet."""
        await self.close_ways([attempt_id])
        placed = self._find(attempt_id)
        if placed is None:
            return
        if placed.members:
            await self._each_member(attempt_id, placed, "release")
        if self._placements is not None:
            self._placements.put(attempt_id, replace(placed, released=True))

    async def beat(self) -> None:
        """Reaches every node that answers; a silent one is not waited for."""
        await self._ask_all("beat", lambda link, _: None)

    async def close(self) -> None:
        await self.close_ways(list(self._ways))
        await asyncio.gather(*(link.channel.close() for link in self._links.values()))
        waiting = [task for link in self._links.values() for task, _ in link.under_way.values()]
        await asyncio.gather(*waiting, return_exceptions=True)

    # ---- questions

    async def observe(self, attempt_ids: Sequence[str]) -> dict[str, Observation]:
        if any(self._find(attempt_id) is None for attempt_id in attempt_ids):
            await self._hear_the_uncounted()
        placed = {attempt_id: self._find(attempt_id) for attempt_id in attempt_ids}
        wanted: dict[str, list[str]] = defaultdict(list)
        for attempt_id, where in placed.items():
            if where is not None and not where.released:
                for node, member in members_of(attempt_id, where):
                    wanted[node].append(member)
        seen: dict[str, Observation] = {}
        for found in await asyncio.gather(*(self._look(node, members) for node, members in wanted.items())):
            seen |= found
        judged = {attempt_id: await self._judge(attempt_id, where, seen) for attempt_id, where in placed.items()}
        for attempt_id, where in placed.items():
            if where is not None and where.gone_limit_s and judged[attempt_id].state == "unknown":
                judged[attempt_id] = replace(judged[attempt_id], gone_limit_s=where.gone_limit_s)
        return judged

    async def log(self, attempt_id: str, offset: int, limit_bytes: int, rank: int = 0) -> LogChunk:
        offset = max(0, offset)
        where = self._member(attempt_id, rank)
        if where is None:
            return LogChunk(data=b"", offset=offset, next_offset=offset, complete=False)
        link, member = where
        said = await self._ask(link, "log", attempt_id=member, offset=offset, limit_bytes=max(0, limit_bytes))
        data = base64.b64decode(said["data"])
        return LogChunk(data=data, offset=offset, next_offset=offset + len(data), complete=said["complete"])

    async def samples(self, attempt_id: str, limit: int) -> list[Sample]:
        where = self._member(attempt_id, 0)
        if where is None:
            return []
        said = await self._ask(where[0], "samples", attempt_id=where[1], limit=limit)
        return [as_sample(each) for each in said["samples"]]

    async def circumstances(self, attempt_id: str) -> list[dict[str, object]]:
        placed = self._find(attempt_id)
        if placed is None:
            return []
        found: list[dict[str, object]] = []
        for node, member in members_of(attempt_id, placed):
            said = await self._ask(self._link(node), "circumstances", attempt_id=member)
            if said["circumstances"]:
                found.append(said["circumstances"])
        return found

    async def attempts(self) -> list[str]:
        """Of nodes that do not answer, those that were sent there."""
        found: set[str] = set()

        def keep(_: Link, said: Document) -> None:
            found.update(split(member)[0] for member in said["attempts"])

        await self._ask_all("attempts", keep)
        if self._placements is not None:
            silent = {link.name for link in self._links.values() if link.failure is not None}
            for attempt_id, placed in self._placements.all().items():
                wish = placed.stop and not placed.members
                if not placed.released and (wish or silent & set(placed.members)):
                    found.add(attempt_id)
        return sorted(found)

    async def bring_outputs(self, attempt_id: str, run_id: str, target: Path) -> None:
        where = self._member(attempt_id, 0)
        if where is None or self._shared_dir == "":
            return
        link = where[0]
        root = f"{self._shared_dir}/runs/{run_id}/output" if self._shared_dir else ""
        files = (await self._ask(link, "files", run_id=run_id, root=root))["files"]
        await asyncio.to_thread(_demand_room, target, files)
        for file in files:
            await self._bring(link, run_id, root, file, target)

    # ---- starting

    async def _start(self, order: Order) -> None:
        placed = self._find(order.attempt_id)
        if placed is not None and placed.released:
            return
        if self._placements is None and order.nodes > 1:
            raise Unavailable(
                f"{order.attempt_id} needs {order.nodes} nodes; pool {self._pool} has one", "choose a larger pool"
            )
        if placed is None or not placed.members:
            placed = await self._reserve_somewhere(order, placed or Placed(run_id=order.run_id))
        members = members_of(order.attempt_id, placed)
        if placed.stop:
            await self._each_member(order.attempt_id, placed, "stop", reason=placed.stop)
        try:
            await self._gather(
                self._ask(self._link(node), "start", START_PATIENCE_S, order=document)
                for (node, _), document in zip(members, self._documents(order, placed), strict=True)
            )
        except Unavailable as error:
            if self._placements is not None and len(members) == 1 and await self._withdrawn(members):
                self._placements.put(order.attempt_id, replace(placed, members=()))
                raise Unplaced(error.message, error.hint) from error
            raise

    async def _reserve_somewhere(self, order: Order, before: Placed) -> Placed:
        """All members reserved, and the placement durable. Raises Unavailable with nothing reserved."""
        assert self._placements is not None
        tried: set[str] = set()
        while True:
            try:
                nodes = self._choose(order, tried)
                port = (await self._ask(self._link(nodes[0]), "free_port"))["port"] if len(nodes) > 1 else 0
            except Unavailable as error:
                # From here on it is known that no node has it, whichever node is silent.
                self._placements.put(order.attempt_id, before)
                raise Unplaced(error.message, error.hint) from error
            limit_s = order.control_plane_gone_limit_s or self._gone_limit_s or 0.0
            placed = replace(before, run_id=order.run_id, members=nodes, port=port, gone_limit_s=limit_s)
            members = members_of(order.attempt_id, placed)
            failures = await asyncio.gather(
                *(
                    self._ask(self._link(node), "reserve", START_PATIENCE_S, order=document)
                    for (node, _), document in zip(members, self._documents(order, placed), strict=True)
                ),
                return_exceptions=True,
            )
            failed = {node: error for node, error in zip(nodes, failures, strict=True) if not isinstance(error, dict)}
            if not failed:
                self._placements.put(order.attempt_id, placed)
                return placed
            # Nothing was started: whoever reserved gives it back; who can't hear that now does when it is back.
            await self._withdrawn(members)
            error = next(iter(failed.values()))
            tried |= set(failed)
            if order.placements or not isinstance(error, GroundError) or len(self._links) - len(tried) < order.nodes:
                self._placements.put(order.attempt_id, before)
                raise Unplaced(error.message, error.hint) if isinstance(error, Unavailable) else error

    async def _withdrawn(self, members: Sequence[tuple[str, str]]) -> bool:
        """Whether every node gave its reservation back, so that none of it can start."""
        answers = await asyncio.gather(
            *(self._ask(self._link(node), "withdraw", attempt_id=member) for node, member in members),
            return_exceptions=True,
        )
        return all(isinstance(answer, dict) for answer in answers)

    def _choose(self, order: Order, tried: Sequence[str] | set[str]) -> tuple[str, ...]:
        """The named nodes, or `order.nodes` that answer: those where the run has been before, then the emptiest."""
        if order.placements:
            missing = [place.node for place in order.placements if place.node not in self._links]
            if missing:
                raise Unavailable(f"pool {self._pool} has no node {missing[0]}", "ground nodes list --pool shows them")
            return tuple(place.node for place in order.placements)
        usable = [
            link
            for link in self._links.values()
            if link.name not in tried and link.name not in order.avoid and link.failure is None
        ]
        if len(usable) < order.nodes:
            silent = [link.failure.message for link in self._links.values() if link.failure is not None]
            raise Unavailable(
                f"{order.attempt_id} needs {order.nodes} nodes of pool {self._pool}; {len(usable)} take work"
                + (f" ({silent[0]})" if silent else ""),
                "ground nodes list shows which do not, and why",
            )
        home, load = set[str](), defaultdict[str, int](int)
        for placed in self._placements.all().values() if self._placements is not None else ():
            for node in placed.members:
                load[node] += not placed.released
                if placed.run_id == order.run_id:
                    home.add(node)
        usable.sort(key=lambda link: (link.name not in home, load[link.name], link.name))
        return tuple(link.name for link in usable[: order.nodes])

    def _documents(self, order: Order, placed: Placed) -> list[Document]:
        """One order per member, as its desk reads it."""
        base = {**asdict(order), "not_after": order.not_after.isoformat(), **asdict(self._options)}
        for unneeded in ("placements", "avoid", "nodes"):
            del base[unneeded]
        base["control_plane_gone_limit_s"] = placed.gone_limit_s or order.control_plane_gone_limit_s
        if self._shared_dir is None:
            base |= {"checkpoint_dir": "", "output_dir": ""}
        elif self._shared_dir:
            run = f"{self._shared_dir}/runs/{order.run_id}"
            base |= {"checkpoint_dir": f"{run}/checkpoints", "output_dir": f"{run}/output"}
        if order.checkpoint_share:  # the spec's own choice
            base["checkpoint_dir"] = order.checkpoint_dir
        places = order.placements or tuple(Placement(node=node) for node in placed.members)
        addresses = [self._link(node).address for node in placed.members]
        documents = []
        for rank, (_, member) in enumerate(members_of(order.attempt_id, placed)):
            env = {**as_seen_there(order, self._shared_dir), **environment(placed, rank, addresses, order.accelerators)}
            wanted = list(places[rank].accelerators)
            documents.append({**base, "attempt_id": member, "env": env, "wanted_indexes": wanted})
            if order.preflight is not None and len(placed.members) > 1:
                first = self._links[placed.members[0]].address
                peer = {"host": first, "port": placed.port, "listen": rank == 0, "peers": len(placed.members) - 1}
                peer["wait_s"] = max(1.0, order.preflight.budget_s - 3)
                documents[-1]["preflight"] = {**base["preflight"], "peer": peer}
        return documents

    # ---- looking

    async def _look(self, node: str, members: Sequence[str]) -> dict[str, Observation]:
        link = self._links.get(node)
        found: dict[str, Observation] = {}
        for start in range(0, len(members), LOOK_BATCH):
            batch = members[start : start + LOOK_BATCH]
            try:
                if link is None:
                    raise Unsent(f"node {node} is not in pool {self._pool} any more", "put it back into the pool file")
                documents = (await self._glance(link, "look", attempt_ids=list(batch)))["documents"]
            except Unavailable as error:
                since = (link.heard_at if link else None) or self._opened_at
                silent = {"state": "unknown", "message": error.message}
                found |= {each: replace(as_observation(each, node, silent), silent_since=since) for each in batch}
            else:
                pairs = zip(batch, documents, strict=True)
                found |= {each: readable_observation(each, node, document) for each, document in pairs}
        return found

    async def _judge(self, attempt_id: str, placed: Placed | None, seen: Mapping[str, Observation]) -> Observation:
        if placed is None or placed.released or not placed.members:
            uncounted = self._uncounted() if placed is None else []
            if uncounted:
                message = f"node {uncounted[0]} has not answered yet; it may have it"
                return Observation(
                    attempt_id=attempt_id, state="unknown", message=message, silent_since=self._opened_at
                )
            return Observation(attempt_id=attempt_id, state="absent")
        members = [seen[member] for _, member in members_of(attempt_id, placed) if member in seen]
        if len(placed.members) == 1:
            return replace(members[0], attempt_id=attempt_id)
        whole, first = together(attempt_id, members)
        if first is not None:
            await self._end_the_others(attempt_id, placed, seen, first)
        return whole

    async def _end_the_others(
        self, attempt_id: str, placed: Placed, seen: Mapping[str, Observation], first: Observation
    ) -> None:
        reason, message = first.end_reason or EndReason.RUNNER_LOST, OTHER_ENDED + first.message
        for node, member in members_of(attempt_id, placed):
            if seen[member].state in {"starting", "running"}:
                # One that is cut off meanwhile is told again at the next look.
                with contextlib.suppress(Unsent, Unanswered):
                    await self._ask(self._link(node), "stop", attempt_id=member, reason=reason.value, message=message)

    async def _hear_the_uncounted(self) -> None:
        """What has no file may still run on a node that was never heard: on a first start, or after files were lost."""
        calls = (self._ask(self._links[name], "attempts") for name in self._uncounted())
        await asyncio.gather(*calls, return_exceptions=True)

    def _uncounted(self) -> list[str]:
        if self._placements is None:
            return []
        return [name for name in self._links if not self._placements.is_counted(name)]

    # ---- asking

    async def _ask(self, link: Link, operation: str, patience_s: float = 0.0, **arguments: Any) -> Document:
        try:
            said = await link.channel.call(operation, patience_s, **arguments)
        except (Unsent, Unanswered) as error:
            link.failure = error
            raise
        link.failure, link.heard_at = None, self._clock.now()
        return said

    async def _glance(self, link: Link, operation: str, **arguments: Any) -> Document:
        """A question that must not hold up the other nodes: one slow answer is waited for here only a little.

        The question goes on; until it is answered or given up, the node is taken for silent at once.
        """
        if len(self._links) == 1:
            return await self._ask(link, operation, **arguments)
        patience_s = LOOK_PATIENCE_S if link.heard_at or link.failure else FIRST_LOOK_PATIENCE_S
        now = time.monotonic()
        waiting, since = link.under_way.get(operation, (None, now))
        if waiting is None or waiting.done() or now - since < patience_s:
            fresh = asyncio.get_running_loop().create_task(self._ask(link, operation, **arguments))
            fresh.add_done_callback(_retrieved)
            if waiting is None or waiting.done():
                link.under_way[operation] = (fresh, now)
            done, _ = await asyncio.wait([fresh], timeout=patience_s)
            if done:
                return fresh.result()
        raise Unsent(f"node {link.name} has not answered for {patience_s:g} s", "it is waited for")

    async def _ask_all(self, operation: str, keep: Callable[[Link, Document], None]) -> None:
        """Asks every node at once; one that does not answer has its failure noted."""

        async def ask(link: Link) -> None:
            try:
                keep(link, await self._glance(link, operation))
            except Unavailable as error:
                if link.failure is None and len(self._links) == 1:
                    raise
                link.failure = error

        await asyncio.gather(*(ask(link) for link in self._links.values()))

    async def _gather(self, calls: Any) -> None:
        """All of them to their end; then the first failure."""
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _each_member(self, attempt_id: str, placed: Placed, operation: str, **arguments: Any) -> None:
        await self._gather(
            self._ask(self._link(node), operation, attempt_id=member, **arguments)
            for node, member in members_of(attempt_id, placed)
        )

    @property
    def _sees_files(self) -> bool:
        return self._shared_dir == ""

    def _link(self, node: str) -> Link:
        if node not in self._links:
            raise Unavailable(f"node {node} is not in pool {self._pool} any more", "put it back into the pool file")
        return self._links[node]

    def _find(self, attempt_id: str) -> Placed | None:
        if self._placements is None:
            return Placed(members=(next(iter(self._links)),))
        return self._placements.get(attempt_id)

    def _member(self, attempt_id: str, rank: int) -> tuple[Link, str] | None:
        placed = self._find(attempt_id)
        if placed is None or rank >= len(placed.members) or placed.members[rank] not in self._links:
            return None
        return self._links[placed.members[rank]], list(members_of(attempt_id, placed))[rank][1]

    def adopter(self, name: str) -> Callable[[Document], Awaitable[None]]:
        """What a channel calls after each connection: what runs there is ours to look after."""

        async def adopt(hello: Document) -> None:
            assert self._placements is not None
            link = self._links[name]
            link.failure, link.heard_at = None, self._clock.now()
            for member in hello["attempts"]:
                attempt_id, rank, size = split(member)
                known = self._placements.get(attempt_id)
                if member in hello["reserved"] and (known is None or not known.members):
                    # Asked for by a control plane that died before it decided: whoever decides next asks again.
                    await self._ask(link, "withdraw", attempt_id=member)
                    continue
                if not self._placements.adopt(attempt_id, rank, size, name):
                    # Reserved here, then moved because the node fell silent: it must not start here too.
                    with contextlib.suppress(Conflict):
                        await self._ask(self._link(name), "withdraw", attempt_id=member)
                        continue
                    stopped = EndReason.STOPPED_BY_USER.value
                    await self._ask(self._link(name), "stop", attempt_id=member, reason=stopped)
            self._placements.count(name)

        return adopt

    def _keep_facts(self, link: Link, said: Document) -> None:
        link.facts = said

    async def _bring(self, link: Link, run_id: str, root: str, file: Document, target: Path) -> None:
        path = (target / file["path"]).resolve()
        if not path.is_relative_to(target.resolve()):
            raise InvalidInput(f"output file {file['path']!r} leaves the run's output folder", "use a relative path")
        if path.exists():
            about = path.stat()
            if (about.st_size, about.st_mtime_ns) == (file["bytes"], file["modified_ns"]):
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        with draft.open("wb") as out:
            while out.tell() < file["bytes"]:
                said = await self._ask(
                    link, "read", 60.0, run_id=run_id, root=root, path=file["path"], offset=out.tell()
                )
                piece = base64.b64decode(said["data"])
                if not piece:
                    raise Conflict(f"output file {file['path']} became shorter while it was copied", "it is done again")
                out.write(piece)
        os.utime(draft, ns=(file["modified_ns"], file["modified_ns"]))
        draft.replace(path)


def _retrieved(task: asyncio.Task[Document]) -> None:
    """An answer that came too late to be waited for is no unheard failure."""
    if not task.cancelled():
        task.exception()


def _demand_room(target: Path, files: Sequence[Document]) -> None:
    """Unavailable while the outputs don't fit on our disk, InvalidInput when they never will: no job may fill it."""
    missing = [file for file in files if not (target / file["path"]).exists()]
    wanted = sum(file["bytes"] for file in missing)
    place = next(folder for folder in (target, *target.parents) if folder.exists())
    disk = shutil.disk_usage(place)
    if wanted > disk.total:
        words = f"the run's outputs have {format_bytes(wanted)}; the whole disk here has {format_bytes(disk.total)}"
        raise InvalidInput(words, "write large results to a shared folder or a bucket")
    if wanted > disk.free * OUTPUTS_PART:
        words = f"the run's outputs have {format_bytes(wanted)}; {format_bytes(disk.free)} are free here"
        raise Unavailable(words, f"free some space under {place}")
