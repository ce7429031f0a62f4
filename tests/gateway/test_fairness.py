"""Projects take turns at a worker: a flood of one that is admitted makes the others wait for its fair part only."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from tests.gateway.harness import Exchange, MockUpstream, RawClient, chat, completion, key, post, route, running
from tests.gateway.harness import well_behaved as answers_well

from groundplane.gateway.fairness import Pieces
from groundplane.gateway.state import Options


class Work:
    """Pieces of work that come in, and the order in which they are done."""

    def __init__(self, per_turn: int) -> None:
        self.pieces = Pieces(per_turn)
        self.done: list[str] = []

    def come(self, project: str, name: str = "", *, gone: bool = False) -> None:
        """As a request comes in."""
        pieces, work = self.pieces, functools.partial(self._do, name or project, gone)
        if project != pieces.project:
            pieces.came(project)
        if pieces.left:
            pieces.left -= 1
            if not pieces.left:
                pieces.used_up()
        elif pieces.waits(project, work):
            return
        work()

    def _do(self, name: str, gone: bool) -> bool:
        if not gone:
            self.done.append(name)
        return not gone

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.done) < count:
                await asyncio.sleep(0)


async def test_a_call_now_and_then_goes_on_beside_a_flood_at_once_and_further_ones_in_turn() -> None:
    work = Work(per_turn=4)
    for number in range(20):
        work.come("flood", f"flood {number}")
    assert work.done == [f"flood {number}" for number in range(5)]
    for number in range(3):
        work.come("victim", f"victim {number}")
    assert work.done[5:] == ["victim 0"]
    await asyncio.sleep(0)
    assert work.done[6:] == ["flood 5", "victim 1", "flood 6", "victim 2"]
    await work.until(23)
    assert [name for name in work.done if name.startswith("flood")] == [f"flood {number}" for number in range(20)]


async def test_each_project_has_its_part_of_every_turn_and_many_projects_do_not_make_it_long() -> None:
    work = Work(per_turn=3)
    for project in ("a", "b", "c", "d", "e"):
        for _ in range(9 if project == "a" else 4):
            work.come(project)
    assert work.done == ["a"] * 3 + ["a", "b", "c"], "three of a turn, and one of each beyond, of three projects"
    await work.until(25)
    assert work.done[6:] == ["a", "b", "c", "d", "e"] * 3 + ["a", "d", "e", "a"]


async def test_callers_that_left_take_no_turn_and_an_idle_worker_goes_on_at_once() -> None:
    work = Work(per_turn=2)
    for number in range(12):
        work.come("flood", str(number), gone=number < 10)
    await work.until(2)
    assert work.done == ["10", "11"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work.come("flood", "later")
    assert work.done[-1] == "later"


async def test_the_turns_of_a_project_alone_are_long_until_another_one_comes() -> None:
    work = Work(per_turn=2)
    for _ in range(60):
        work.come("flood")
    assert len(work.done) == 3
    await asyncio.sleep(0)
    assert len(work.done) == 19
    work.come("victim")
    await asyncio.sleep(0)
    assert work.done[19:] == ["victim", "flood", "flood"]


async def test_a_request_and_its_answer_overtake_those_of_a_flood(tmp_path: Path, upstream: MockUpstream) -> None:
    keys = (key("flood"), key("victim", id="key-2", project="speech"))
    routes = (route("tiny", upstream.base_url), route("tiny", upstream.base_url, project="speech"))
    budgets = {"vision": 10**12, "speech": 10**12}
    flood_answers, last_answer, written, taken = asyncio.Event(), asyncio.Event(), [0], []

    async def answer(exchange: Exchange) -> None:
        """Those of the flood together, in every form; the victim's behind them."""
        if b"victim" in exchange.seen.body:
            await last_answer.wait()
            await answers_well(exchange)
            return
        await flood_answers.wait()
        written[0] += 1
        if written[0] == 60:
            last_answer.set()
        if written[0] % 7 == 0:  # its end comes with it, and may not overtake it
            body = b'{"text": "closed"}'
            exchange.writer.write(b"HTTP/1.1 200 X\r\nconnection: close\r\ncontent-length: 18\r\n\r\n" + body)
            exchange.writer.close()
        elif written[0] % 20 == 0:
            await exchange.json(completion("long " * 200_000))
        else:
            await answers_well(exchange)

    async def take(client: RawClient, name: str) -> None:
        answer = await client.answer()
        assert (answer.status, answer.whole) == (200, True)
        taken.append(name)

    upstream.behave = answer
    options = Options(drain_s=0.2, pieces_per_turn=2)
    async with running(tmp_path, options, keys=keys, routes=routes, budgets=budgets) as bench:
        assert bench.gateway is not None
        state = bench.gateway.state
        clients = [await RawClient.open(bench.port) for _ in range(61)]
        await bench.until(lambda: len(state.clients) == 61, 30)
        for number, client in enumerate(clients[:60]):
            client.writer.write(post(chat(user="flood", stream=number % 3 == 0), secret="flood"))
        clients[60].writer.write(post(chat(user="victim"), secret="victim"))
        await bench.until(lambda: len(upstream.seen) == 61, 30)
        arrived = [b"victim" in one.body for one in upstream.seen]
        assert arrived.index(True) < 20, "the victim's request was sent behind most of the flood's"
        gone = clients[30]
        flood_answers.set()
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            for client in clients:
                if client is not gone:
                    tasks.create_task(take(client, "victim" if client is clients[60] else "flood"))
            await gone.close()
        assert taken.index("victim") < 20, "the victim's answer was relayed behind most of the flood's"
        for client in clients:
            await client.close()
        await bench.until(lambda: state.metrics.in_flight == 0, 30)
