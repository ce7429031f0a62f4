"""The embedded engine's heart: a loaded model, a bounded number of generations at once, and a bounded queue.

A generation's life: `reserve` a place → `prepare` the prompt → wait for a slot → the worker thread calls CTranslate2
→ each token hops to the event loop → text pieces → `Finished`. Closing the stream early stops it at the next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2  # type: ignore[import-untyped]
import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from groundplane.adapters.model_servers import llama_spec
from groundplane.adapters.model_servers.completion_request import ApiError, Ask, Defaults, Sampling
from groundplane.adapters.model_servers.text_stream import Detokenizer, StopStrings
from groundplane.errors import InvalidInput

SEEDED_WEIGHTS_MAX_BYTES = 256 << 20
"""A seed needs a fresh copy of the weights (see `_seeded`); beyond this size that costs more than it is worth."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to hand on, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """`reason` is stop or length; `completion_tokens` counts every token computed, the end token too."""

    reason: str
    completion_tokens: int


class LoadedModel:
    """A model folder, its tokenizer and its chat template, ready to generate. Made in a thread: it reads files."""

    def __init__(self, model_dir: Path, cache_dir: Path, *, parallel: int, threads_each: int) -> None:
        self.config = llama_spec.read_config(model_dir)
        self.tokenizer = _read_tokenizer(model_dir)
        described = llama_spec.read_optional_json(model_dir / "tokenizer_config.json")
        suggested = llama_spec.read_optional_json(model_dir / "generation_config.json")
        self.specials = {
            "bos": _token_text(described.get("bos_token")),
            "eos": _token_text(described.get("eos_token")),
        }
        # Ids may have holes; the engine wants a name for each.
        count = self.tokenizer.get_vocab_size()
        tokens = [self.tokenizer.id_to_token(index) or f"<extra_id_{index}>" for index in range(count)]
        self.converted = llama_spec.convert(model_dir, cache_dir, tokens, self.specials)
        self.tokens = tokens
        self.end_ids = self._end_ids(suggested.get("eos_token_id"))
        self.defaults = _defaults(suggested)
        self.template = _read_template(model_dir, described)
        self._threads_each = threads_each
        self._seed_lock = threading.Lock()
        self._generator = self._open(parallel)
        # One sampled token: loads every kernel, and gives the worker a random stream no later seed can set.
        self._generator.generate_batch([[tokens[self.end_ids[0]]]], max_length=1, sampling_topk=0)

    def _end_ids(self, suggested: int | list[int] | None) -> list[int]:
        if suggested is None:
            found = self.tokenizer.token_to_id(self.specials["eos"])
            if found is None:
                raise InvalidInput(
                    "neither generation_config.json nor tokenizer_config.json names an end-of-text token"
                )
            return [found]
        return list(suggested) if isinstance(suggested, list) else [suggested]

    def _open(self, parallel: int) -> ctranslate2.Generator:
        return ctranslate2.Generator(
            str(self.converted),
            device="cpu",
            compute_type="float32",
            inter_threads=parallel,
            intra_threads=self._threads_each,
        )

    def generator_for(self, sampling: Sampling) -> ctranslate2.Generator:
        """The shared generator, or for a seeded sample one of its own. Blocks while weights are read."""
        if sampling.seed is None or sampling.temperature == 0:
            return self._generator
        return self._seeded(sampling.seed)

    def _seeded(self, seed: int) -> ctranslate2.Generator:
        # CTranslate2 seeds each worker thread once, from a process-wide seed, at its first sample. The same seed thus
        # gives the same text only on a new worker: open one, and draw its first number before the seed can change.
        digest = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
        with self._seed_lock:
            ctranslate2.set_random_seed(digest | 1)
            fresh = self._open(1)
            fresh.generate_batch([[self.tokens[self.end_ids[0]]]], max_length=1, sampling_topk=0)
            ctranslate2.set_random_seed(secrets.randbits(31) | 1)
        return fresh

    def weights_bytes(self) -> int:
        return (self.converted / "model.bin").stat().st_size

    def render(self, messages: list[dict[str, Any]]) -> str:
        """The chat as one prompt. Raises ApiError when the model has no template or it refuses these messages."""
        if self.template is None:
            raise ApiError(400, "this model has no chat template; use /v1/completions", code="no_chat_template")
        try:
            return self.template.render(
                messages=messages,
                add_generation_prompt=True,
                bos_token=self.specials["bos"],
                eos_token=self.specials["eos"],
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ApiError(400, f"the model's chat template refused the messages: {error}") from error


class Engine:
    """Bounded generation over one loaded model, for one event loop."""

    def __init__(self, model: LoadedModel, *, parallel: int, queue: int) -> None:
        self.model = model
        self.running = 0
        self._places = parallel + queue
        self._taken = 0
        self._slots = asyncio.Semaphore(parallel)
        self._workers = ThreadPoolExecutor(parallel, thread_name_prefix="generate")

    @property
    def waiting(self) -> int:
        """Requests that have a place and no slot yet."""
        return max(0, self._taken - self.running)

    @contextlib.contextmanager
    def reserve(self) -> Iterator[None]:
        """A place among the running and the waiting. Raises ApiError (503) when all are taken."""
        if self._taken >= self._places:
            raise ApiError(
                503,
                f"all {self._places} places are taken: {self.running} running, {self.waiting} waiting",
                kind="server_error",
                code="overloaded",
                retry_after_s=1,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    def prepare(self, ask: Ask) -> tuple[list[int], int]:
        """Prompt token ids and the most tokens to generate. Raises ApiError when they don't fit the context."""
        context = self.model.config.context
        if ask.token_ids is not None:
            ids = ask.token_ids
            if wrong := [token for token in ids if not 0 <= token < len(self.model.tokens)]:
                raise ApiError(400, f"token id {wrong[0]} is not in 0…{len(self.model.tokens) - 1}", param="prompt")
        elif ask.messages is not None:
            # The template writes the special tokens itself.
            ids = self.model.tokenizer.encode(self.model.render(ask.messages), add_special_tokens=False).ids
        else:
            ids = self.model.tokenizer.encode(ask.text or "").ids
        wanted = ask.sampling.max_tokens
        if not ids:
            raise ApiError(400, "the prompt is empty", param="prompt")
        if len(ids) + (wanted or 1) > context:
            raise ApiError(
                400,
                f"the context of this model is {context} tokens; the prompt has {len(ids)} and "
                f"{wanted or 'at least 1'} more were asked for",
                code="context_length_exceeded",
                param="messages" if ask.messages is not None else "prompt",
            )
        if (
            ask.sampling.seed is not None
            and ask.sampling.temperature
            and self.model.weights_bytes() > SEEDED_WEIGHTS_MAX_BYTES
        ):
            raise ApiError(
                400,
                f"seed is supported for weights up to {SEEDED_WEIGHTS_MAX_BYTES >> 20} MiB; "
                f"this model has {self.model.weights_bytes() >> 20}",
                code="unsupported_parameter",
                param="seed",
            )
        return ids, wanted or context - len(ids)

    async def stream(self, ids: list[int], limit: int, sampling: Sampling) -> AsyncGenerator[Piece | Finished, None]:
        """Pieces of text as they become complete, then one Finished."""
        text, stops = Detokenizer(self.model.tokenizer), StopStrings(sampling.stop)
        count, reason = 0, "length"
        async with contextlib.aclosing(self._tokens(ids, limit, sampling)) as tokens:
            async for token in tokens:
                count += 1
                if token in self.model.end_ids:
                    reason = "stop"
                    break
                if ready := stops.push(text.push(token)):
                    yield Piece(ready)
                if stops.found:
                    break
        if not stops.found and (rest := stops.push(text.finish()) + stops.finish()):
            yield Piece(rest)
        yield Finished("stop" if stops.found else reason, count)

    async def _tokens(self, ids: list[int], limit: int, sampling: Sampling) -> AsyncGenerator[int, None]:
        """Token ids as the worker makes them. Leaving early stops the worker at its next token."""
        await self._slots.acquire()
        self.running += 1
        loop, cancelled = asyncio.get_running_loop(), threading.Event()
        arrived: asyncio.Queue[int | None] = asyncio.Queue()

        def on_token(step: ctranslate2.GenerationStepResult) -> bool:
            loop.call_soon_threadsafe(arrived.put_nowait, step.token_id)
            return cancelled.is_set()

        def release(done: asyncio.Future[None]) -> None:
            # Here and not in `finally`: the slot is free when the worker is, which a cancelled caller can't await.
            self.running -= 1
            self._slots.release()
            arrived.put_nowait(None)
            done.exception()  # read here too: a caller that left does not

        work = loop.run_in_executor(self._workers, self._work, (ids, limit, sampling), on_token)
        work.add_done_callback(release)
        try:
            while (token := await arrived.get()) is not None:
                yield token
            await work
        finally:
            cancelled.set()

    def _work(self, order: tuple[list[int], int, Sampling], on_token: Any) -> None:
        ids, limit, sampling = order
        greedy = sampling.temperature == 0
        self.model.generator_for(sampling).generate_batch(
            [[self.model.tokens[token] for token in ids]],
            max_length=limit,
            include_prompt_in_result=False,
            sampling_topk=1 if greedy else 0,
            sampling_topp=1.0 if greedy else sampling.top_p,
            sampling_temperature=1.0 if greedy else sampling.temperature,
            end_token=self.model.end_ids,
            return_end_token=True,
            callback=on_token,
        )

    def close(self) -> None:
        self._workers.shutdown(wait=True)


def load_timed(model_dir: Path, cache_dir: Path, *, parallel: int, threads_each: int) -> tuple[LoadedModel, float]:
    """The model and the seconds it took to convert and load it."""
    started = time.monotonic()
    model = LoadedModel(model_dir, cache_dir, parallel=parallel, threads_each=threads_each)
    return model, time.monotonic() - started


def _read_tokenizer(model_dir: Path) -> Tokenizer:
    path = model_dir / "tokenizer.json"
    if not path.exists():
        raise InvalidInput(f"{model_dir.name}: tokenizer.json is missing")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InvalidInput(f"{model_dir.name}/tokenizer.json can't be read: {error}") from error


def _read_template(model_dir: Path, described: dict[str, Any]) -> jinja2.Template | None:
    """The chat template, from tokenizer_config.json or its own file. Sandboxed: it came with the weights."""
    source = described.get("chat_template")
    own_file = model_dir / "chat_template.jinja"
    if source is None and own_file.exists():
        source = own_file.read_text(encoding="utf-8")
    if not isinstance(source, str):
        return None

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidInput(f"{model_dir.name}: the chat template can't be read: {error}") from error


def _token_text(value: Any) -> str:
    """Special tokens are written as text or as an object with `content`."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _defaults(suggested: dict[str, Any]) -> Defaults:
    if suggested.get("do_sample") is False:
        return Defaults()
    return Defaults(temperature=float(suggested.get("temperature") or 1.0), top_p=float(suggested.get("top_p") or 1.0))
