"""Requests over a store: read, stored, seen by whom they belong to, answered, and turned into specs that plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.domain.intake_messages import MONDAY
from tests.domain.test_intake import NO_QUOTA, NOW, lexicon
from tests.stage import Answer, Asked, Played

from groundplane.adapters.gap_filler import ChatGapFiller
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.store.sql import SqlStore
from groundplane.adapters.system import RandomIds
from groundplane.audit import Event
from groundplane.domain.access import Project
from groundplane.domain.intake.request import Request, RequestStatus
from groundplane.domain.spec import EndpointSpec, JobSpec
from groundplane.domain.spec.parse import parse
from groundplane.errors import Conflict, InvalidInput, NotFound, TooLarge
from groundplane.identity import Actor, Role
from groundplane.services.requests import Requests

ADMIN = Actor(name="ops", role=Role.ADMIN)
ANA = Actor(name="ana", role=Role.MEMBER, project="default")
BO = Actor(name="bo", role=Role.MEMBER, project="vision")

ANSWERS = {
    "owner": "ana",
    "cost_center": "research",
    "end_date": "2026-12-15",
    "budget": "$5,000",
    "cpus": "8",
    "memory": "64GiB",
    "accelerators_per_machine": "1",
    "1.accelerator": "a100-80gb",
    "1.duration": "8h",
    "1.command": "python train.py --epochs 3",
    "1.model": "llama-3.1-8b",
    "1.method": "lora",
    "2.model": "tiny-lm@1",
    "2.machines": "1",
    "2.accelerators_per_machine": "0",
    "price_prompt": "$0.10",
    "price_completion": "$0.40",
}


class SetClock:
    time = NOW

    def now(self) -> datetime:
        return self.time


def service(store: Any = None, **options: Any) -> tuple[Requests, Any]:
    kept = store or MemoryStore()
    return Requests(store=kept, clock=SetClock(), ids=RandomIds(), lexicon=lexicon, **options), kept


async def with_projects(store: Any) -> None:
    async with store.transaction() as tx:
        for name in ("default", "vision"):
            await tx.insert(Project(id=name, owner="ana", cost_center="research", created_at=NOW))


@pytest.fixture
async def requests() -> Requests:
    made, store = service()
    await with_projects(store)
    return made


async def test_the_monday_message_is_stored_with_its_items_and_its_project(requests: Requests) -> None:
    made = await requests.create(ANA, MONDAY, quotas=[NO_QUOTA])
    assert (made.status, made.project, made.created_by) == (RequestStatus.OPEN, "default", "ana")
    assert [item.kind.value for item in made.intake.items] == ["capacity", "endpoint", "monitoring"]
    assert "quota" in [risk.id for risk in made.intake.items[0].risks]
    assert await requests.get(ANA, made.id) == made


async def test_answers_make_it_ready_and_its_specs_parse(requests: Requests) -> None:
    made = await requests.create(ANA, MONDAY)
    answered = await requests.answer(ANA, made.id, ANSWERS)
    assert answered.status is RequestStatus.READY
    specs = await requests.specs(ANA, made.id)
    assert not specs.missing
    job, endpoint = parse(specs.yaml, now=NOW)
    assert isinstance(job, JobSpec)
    assert isinstance(endpoint, EndpointSpec)
    assert (job.resources.nodes, job.resources.accelerators, job.resources.accelerator) == (8, 1, "a100-80gb")
    assert job.metadata.labels["needed-by"] == "2026-11-25"
    assert (endpoint.model, endpoint.public) == ("tiny-lm@1", False)
    assert [step.kind for step in specs.steps] == ["monitoring"]


async def test_what_is_missing_is_said_and_nothing_is_made_up(requests: Requests) -> None:
    made = await requests.create(ANA, MONDAY)
    specs = await requests.specs(ANA, made.id)
    assert not specs.documents
    assert {(each.item, each.fact) for each in specs.missing} >= {(1, "owner"), (1, "end_date"), (2, "model")}


async def test_an_answer_settles_a_contradiction(requests: Requests) -> None:
    made = await requests.create(ANA, "we need 8 GPUs for training. Actually no, 4 GPUs are enough for the training.")
    answered = await requests.answer(ANA, made.id, {"accelerators": "4"})
    assert "contradiction" not in [risk.id for risk in answered.intake.items[0].risks]
    assert "accelerators" not in [question.fact for question in answered.intake.items[0].questions]
    rest = {name: text for name, text in ANSWERS.items() if "." not in name and not name.startswith("price")}
    await requests.answer(ANA, made.id, rest | {"duration": "8h", "command": "true"})
    (job,) = parse((await requests.specs(ANA, made.id)).yaml, now=NOW)
    assert job.resources.nodes * job.resources.accelerators == 4


async def test_a_draft_carries_what_was_read_and_says_which_day_is_which(requests: Requests) -> None:
    made = await requests.create(
        ANA,
        "We need 2 Standard_NC24ads_A100_v4 in eastus by Wednesday to fine-tune llama-3.1-8b with LoRA in bf16, "
        "3 epochs, 500 GB dataset in /mnt/share/corpus which reads at 200 MB/s, checkpoints to /mnt/ckpt every 20 min, "
        "the job takes 6 hours, results needed by Dec 4",
    )
    rest = {name: ANSWERS[name] for name in ("owner", "cost_center", "end_date", "budget")}
    await requests.answer(ANA, made.id, rest | {"command": "python train.py", "optimizer": "adam-8bit"})
    (job,) = parse((await requests.specs(ANA, made.id)).yaml, now=NOW)
    assert isinstance(job, JobSpec)
    assert job.metadata.labels["needed-by"] == "2026-11-25"
    assert job.deadline is not None and job.deadline.date().isoformat() in ("2026-12-04", "2026-12-05")
    assert (job.resources.cloud, job.resources.instance_type, job.resources.region) == (
        "azure", "Standard_NC24ads_A100_v4", "eastus",
    )  # fmt: skip
    assert job.training is not None
    assert (job.training.model, job.training.method, job.training.optimizer) == ("llama-3.1-8b", "lora", "adam-8bit")
    (data,) = job.data
    assert (data.path, data.size_bytes, data.passes, data.bytes_per_s) == (
        "/mnt/share/corpus", 500 * 10**9, 3, 200_000_000,
    )  # fmt: skip
    assert (job.checkpoint_every_s, job.checkpoint_dir, job.max_duration_s) == (1200, "/mnt/ckpt", 6 * 3600)


async def test_an_answer_that_would_change_nothing_is_refused(requests: Requests) -> None:
    made = await requests.create(ANA, "we need 8 GPUs for training")
    with pytest.raises(InvalidInput, match="'500' has no unit"):
        await requests.answer(ANA, made.id, {"dataset_size": "500"})
    await requests.answer(ANA, made.id, {"dataset_size": "500GB", "data_rate": "60 MB/s"})
    with pytest.raises(InvalidInput, match="price_prompt says nothing about capacity"):
        await requests.answer(ANA, made.id, {"price_prompt": "$0.10"})


async def test_counts_that_do_not_agree_are_asked_again(requests: Requests) -> None:
    made = await requests.create(ANA, "train on 16 GPUs on 3 nodes")
    rest = {name: text for name, text in ANSWERS.items() if "." not in name and not name.startswith(("acc", "price"))}
    await requests.answer(ANA, made.id, rest | {"duration": "8h", "command": "true"})
    (missing,) = (await requests.specs(ANA, made.id)).missing
    assert missing.why == "16 GPUs in all, a fraction each and 3 machines do not agree"


async def test_a_value_the_dialect_refuses_comes_back_as_a_missing_fact(requests: Requests) -> None:
    made = await requests.create(ANA, MONDAY)
    await requests.answer(ANA, made.id, ANSWERS | {"2.model": "no version at all"})
    (missing,) = (await requests.specs(ANA, made.id)).missing
    assert (missing.item, missing.fact) == (2, "model")


async def test_every_bad_answer_is_named_and_none_is_taken(requests: Requests) -> None:
    made = await requests.create(ANA, MONDAY)
    with pytest.raises(InvalidInput) as refused:
        await requests.answer(ANA, made.id, {"ownr": "ana", "budget": "lots", "9.owner": "x", "owner": "ana"})
    assert [problem.field for problem in refused.value.problems] == ["ownr", "budget", "9.owner"]
    assert refused.value.problems[0].hint == "did you mean owner?"
    assert (await requests.get(ANA, made.id)).answers == made.answers


async def test_an_empty_answer_takes_an_earlier_one_back(requests: Requests) -> None:
    made = await requests.create(ANA, MONDAY)
    await requests.answer(ANA, made.id, {"owner": "ana"})
    back = await requests.answer(ANA, made.id, {"owner": ""})
    assert "owner" in [question.fact for question in back.intake.items[0].questions]


async def test_others_do_not_see_it_and_operators_do(requests: Requests) -> None:
    made = await requests.create(ANA, MONDAY)
    assert [each.id for each in await requests.requests(ADMIN)] == [made.id]
    assert await requests.requests(BO) == []
    assert await requests.requests(BO, project="default") == []
    with pytest.raises(NotFound, match="no request"):
        await requests.get(BO, made.id)
    with pytest.raises(NotFound, match="no project vision"):
        await requests.create(ANA, MONDAY, project="vision")


async def test_a_request_without_a_project_gets_it_from_an_answer(requests: Requests) -> None:
    made = await requests.create(ADMIN, MONDAY)
    assert made.project == ""
    with pytest.raises(NotFound, match="no project nowhere"):
        await requests.answer(ADMIN, made.id, {"project": "nowhere"})
    assert (await requests.answer(ADMIN, made.id, {"project": "vision"})).project == "vision"
    assert [each.id for each in await requests.requests(BO)] == [made.id]


async def test_a_closed_request_takes_no_answers(requests: Requests) -> None:
    made = await requests.create(ANA, MONDAY)
    closed = await requests.close(ANA, made.id, "done by hand")
    assert await requests.close(ANA, made.id, "again") == closed
    with pytest.raises(Conflict, match="is closed"):
        await requests.answer(ANA, made.id, {"owner": "ana"})


async def test_messages_that_can_not_be_stored_are_refused_or_mended(requests: Requests) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        await requests.create(ANA, " \n ")
    with pytest.raises(TooLarge, match="65,537 bytes"):
        await requests.create(ANA, "x" * 65_537)
    made = await requests.create(ANA, "we need 8 GPUs\0 for \ud800training")
    assert made.message == "we need 8 GPUs\ufffd for \ufffdtraining"


async def test_every_change_is_in_the_trail_and_the_message_is_not() -> None:
    made, store = service()
    await with_projects(store)
    request = await made.create(ANA, MONDAY)
    await made.answer(ANA, request.id, {"owner": "ana"})
    await made.close(ANA, request.id, "done")
    events: list[Event] = [event async for event in store.events()]
    assert [event.action for event in events] == ["request.create", "request.answer", "request.close"]
    assert not [event for event in events if "fine-tuning" in json.dumps(event.after)]


async def test_a_request_comes_back_from_a_database_as_it_went_in(tmp_path: Any) -> None:
    store = await SqlStore.open(f"sqlite:///{tmp_path / 'ground.db'}")
    try:
        made, _ = service(store)
        await with_projects(store)
        request = await made.create(ANA, MONDAY + " Budget 5.000 €, p95 < 1.5 s.", quotas=[NO_QUOTA])
        answered = await made.answer(ANA, request.id, ANSWERS)
        async with store.transaction() as tx:
            assert await tx.get(Request, request.id) == answered
    finally:
        await store.close()


# ---------------------------------------------------------------- suggestions


class Chat(Played):
    """An OpenAI-compatible API of one answer."""

    def __init__(self) -> None:
        self.answer, self.status = "", 200
        self.asked: list[dict[str, Any]] = []
        super().__init__(self._answer)
        self.url += "/v1"

    def _answer(self, asked: Asked) -> Answer:
        self.asked.append({"path": asked.path, "key": asked.headers["Authorization"], **asked.json})
        choice = {"index": 0, "message": {"role": "assistant", "content": self.answer}, "finish_reason": "stop"}
        return Answer(self.status, {"id": "c", "object": "chat.completion", "model": "small", "choices": [choice]})


@pytest.fixture
def chat() -> Iterator[Chat]:
    with closing(Chat()) as played:
        yield played


async def _with_chat(url: str) -> Requests:
    made, store = service(gap_filler=ChatGapFiller(url=url, model="small", key="gp-caller-1"))
    await with_projects(store)
    return made


async def test_a_model_only_suggests_what_it_can_quote(chat: Chat) -> None:
    rows = [
        {"item": 1, "fact": "budget", "value": "$900", "quote": "nine hundred bucks at the most"},
        {"item": 1, "fact": "owner", "value": "ana", "quote": "never said"},
        {"item": 7, "fact": "owner", "value": "ana", "quote": "fine-tuning"},
        {"item": 1, "fact": "cpus", "value": "many", "quote": "fine-tuning"},
        "noise",
    ]
    chat.answer = f"Sure!\n```json\n{json.dumps({'suggestions': rows})}\n```"
    requests = await _with_chat(chat.url)
    made = await requests.create(ANA, "8 H100 for fine-tuning, nine hundred bucks at the most")
    assert [(each.fact, each.value, each.source) for each in made.suggestions] == [("budget", "$900", "small")]
    assert "budget" in [question.fact for question in made.intake.items[0].questions], "a suggestion answers nothing"
    (asked,) = chat.asked
    assert (asked["path"], asked["key"], asked["model"]) == ("/v1/chat/completions", "Bearer gp-caller-1", "small")


@pytest.mark.parametrize(("status", "answer"), [(200, "I am a teapot"), (200, '{"suggestions": 3}'), (429, "{}")])
async def test_a_model_that_answers_nonsense_changes_nothing(chat: Chat, status: int, answer: str) -> None:
    chat.status, chat.answer = status, answer
    made = await (await _with_chat(chat.url)).create(ANA, MONDAY)
    assert made.suggestions == ()
    assert made.suggestions_note.startswith("no suggestions: ")
    assert len(made.intake.items) == 3


async def test_a_model_that_is_not_there_changes_nothing() -> None:
    made = await (await _with_chat("http://127.0.0.1:9/v1")).create(ANA, MONDAY)
    assert made.suggestions_note == "no suggestions: http://127.0.0.1:9/v1 does not answer: ConnectError"


def test_the_answers_of_these_tests_lie_ahead() -> None:
    assert datetime.fromisoformat(ANSWERS["end_date"]).replace(tzinfo=UTC) > NOW + timedelta(days=1)
