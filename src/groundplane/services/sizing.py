"""Sizes and comparisons: names are looked up in the catalogue, the sums are the domain's. Nothing is stored."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from datetime import date
from enum import StrEnum
from typing import TypeVar

from groundplane.domain.catalogue.entries import Catalogue, ProvisionedUnits, TokenListPrice
from groundplane.domain.hardware import Accelerator, InstanceType
from groundplane.domain.planning import compare as sums
from groundplane.domain.planning.compare import Comparison, Option, Workload
from groundplane.domain.sizing.memory import (
    Checkpointing,
    Method,
    Optimizer,
    Precision,
    Serving,
    Training,
    parse_params,
)
from groundplane.domain.sizing.model_shape import ModelShape, shape_from_config, typical_shape
from groundplane.domain.sizing.parallelism import CARDS_MAX, Fabric, Link, fabric_of
from groundplane.domain.sizing.report import SizeReport, size_serving, size_training
from groundplane.domain.sizing.roofline import has_peak
from groundplane.errors import InvalidInput, Problem
from groundplane.identity import Actor
from groundplane.ports import Clock
from groundplane.wire.sizing import CompareRequest, SizeRequest

Word = TypeVar("Word", bound=StrEnum)
SELF_HOSTED_MAX = 8
"""Options of one's own cards that are shown: the cheapest of so many accelerators."""


class Sizings:
    """Answers from the catalogue alone, as it stands: no store, no project, nothing spent."""

    def __init__(self, *, catalogue: Callable[[], Catalogue], clock: Clock) -> None:
        self._read_catalogue = catalogue
        self._clock = clock

    @property
    def _catalogue(self) -> Catalogue:
        return self._read_catalogue()

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that the catalogue knows the shape of."""
        return tuple(model.id for model in self._catalogue.models)

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Names of the accelerators that the catalogue knows."""
        return tuple(card.id for card in self._catalogue.hardware.accelerators)

    @property
    def apis(self) -> tuple[str, ...]:
        """Names of the hosted models that the catalogue has a price of."""
        return tuple(price.id for price in self._catalogue.token_prices if price.mode == "chat")

    async def size(self, actor: Actor, request: SizeRequest) -> SizeReport:
        """The report for a request. Raises InvalidInput with near matches for names that are not known."""
        shape = self._shape(request)
        card, count, notes = self._card(request.gpus)
        fabric = self._fabric(card, request) if card else None
        cards = self._catalogue.hardware.accelerators
        efficiencies = self._catalogue.efficiencies
        if request.purpose == "serve":
            report = size_serving(
                shape,
                _serving(request),
                cards,
                card=card,
                fabric=fabric,
                efficiencies=efficiencies,
                count=count,
                prompt_tokens=request.prompt_tokens,
            )
        elif request.purpose == "train":
            report = size_training(
                shape,
                _training(request),
                cards,
                card=card,
                fabric=fabric,
                efficiencies=efficiencies,
                count=count,
                dataset_tokens=request.dataset_tokens,
                epochs=request.epochs,
            )
        else:
            raise InvalidInput(f"purpose {request.purpose!r} is not one of: train, serve", "choose train or serve")
        return report.noting(notes)

    async def compare(self, actor: Actor, request: CompareRequest) -> Comparison:
        """The workload's options, cheapest first. Raises InvalidInput when nothing is asked for or known."""
        load = Workload(
            requests_per_minute=request.requests_per_minute,
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.completion_tokens,
            peak_factor=request.peak_factor,
            peak_share=request.peak_share,
            hours_per_day=request.hours_per_day,
            cached_share=request.cached_share,
            always_on=request.always_on,
        )
        if not request.apis and not request.model:
            raise InvalidInput("there is nothing to compare", "name --api gpt-4o, --model llama-3.3-70b, or both")
        shape = self._model(request.model) if request.model else None
        prices = [self._price(name) for name in request.apis]
        if shape is not None:
            prices += [price for price in self._hosts(shape) if price not in prices]
        left_out: list[str] = []
        options = [option for price in prices for option in sums.token_options(load, price)]
        cheapest = min((o.microusd_per_month for o in options if o.kind == "hosted"), default=None)
        for price in prices:
            options += self._provisioned(load, price, request.deployment, left_out)
        if shape is not None:
            options += self._own(load, shape, request, cheapest, left_out)
        if not options:
            raise InvalidInput(left_out[0] if left_out else "nothing can serve this", "choose another model or card")
        return Comparison(
            workload=load,
            requests_per_month=load.requests,
            tokens_per_month=load.tokens,
            options=sums.cheapest_first(options),
            left_out=tuple(left_out),
            lines=sums.workload_lines(load),
        )

    # ------------------------------------------------------------ names

    def _shape(self, request: SizeRequest) -> ModelShape:
        given = [bool(request.model), request.config is not None, bool(request.params)]
        if sum(given) != 1:
            what = "no model is named" if not any(given) else "the model is named twice"
            raise InvalidInput(what, "ground size llama-3.1-70b, or with --config config.json, or --params 7B")
        if request.config is not None:
            return shape_from_config(request.config)
        if request.params:
            return typical_shape(parse_params(request.params))
        return self._model(request.model)

    def _model(self, name: str) -> ModelShape:
        found = self._catalogue.model(name)
        if found is None:
            raise _unknown("model", name, self.models, "or give its config.json: --config, or its size: --params 7B")
        return found

    def _price(self, name: str) -> TokenListPrice:
        wanted = name.lower()
        found = [p for p in self._catalogue.token_prices if wanted in (p.id.lower(), p.id.lower().split("/")[-1])]
        if not found:
            raise _unknown("hosted model", name, self.apis, "")
        if found[0].mode != "chat":
            raise InvalidInput(f"{found[0].id} makes embeddings: it completes nothing", "name a chat model")
        return found[0]

    def _card(self, text: str) -> tuple[Accelerator | None, int | None, tuple[str, ...]]:
        """`8xa100-80gb`, `a100-80gb:8`, `h100` → (accelerator, count where given, what was assumed)."""
        if not text.strip():
            return None, None, ()
        match = re.fullmatch(r"(?:(\d{1,6})\s*[x×*]\s*)?(.+?)(?:\s*[:]\s*(\d{1,6}))?", text.strip(), re.I)
        assert match is not None
        name, number = match[2], match[1] or match[3]
        count = int(number) if number else None
        if count is not None and not 1 <= count <= CARDS_MAX:
            raise InvalidInput(f"{count} cards: must be from 1 to {CARDS_MAX}", "write it like 8xa100-80gb")
        hardware = self._catalogue.hardware
        meant = hardware.accelerator(name)
        like = sorted(
            hardware.accelerators_like(name), key=lambda each: (each.memory_bytes, each.bandwidth_bytes_per_s)
        )
        card = meant or (like[0] if like else None)
        if card is None:
            raise _unknown("accelerator", name, hardware.near_accelerators(name) or self.accelerators, "")
        others = ", ".join(each.id for each in like if each != card)
        if card.id == name.lower() or not others:
            return card, count, ()
        return card, count, (f"{name} may be several: taken {card.id}, not {others}",)

    def _fabric(self, card: Accelerator, request: SizeRequest) -> Fabric:
        return fabric_of(card, self._link("pcie4"), self._link(request.fabric), max(1, request.node_gpus))

    def _link(self, name: str) -> Link:
        found = self._catalogue.links.get(name)
        if found is None:
            raise _unknown("link", name, tuple(self._catalogue.links), "")
        return found

    # ------------------------------------------------------------ options

    def _hosts(self, shape: ModelShape) -> list[TokenListPrice]:
        """Hosted prices of the same open model: every word of its name stands in theirs."""
        words = _words(shape.id)
        return [p for p in self._catalogue.token_prices if p.mode == "chat" and words <= _words(p.id)]

    def _provisioned(
        self, load: Workload, price: TokenListPrice, deployment: str, left_out: list[str]
    ) -> tuple[Option, ...]:
        units = self._units(price)
        if units is None:
            return ()
        per_unit = next((p for p in self._catalogue.provisioned_prices if p.deployment == deployment), None)
        if per_unit is None:
            known = tuple(p.deployment for p in self._catalogue.provisioned_prices)
            raise _unknown("deployment", deployment, known, "")
        found = sums.provisioned_options(load, units, per_unit, price)
        if not found:
            left_out.append(f"{price.id}: provisioned units are not sold {deployment}, or weigh completions unknown")
        return found

    def _units(self, price: TokenListPrice) -> ProvisionedUnits | None:
        """Units are Azure's: they belong to its prices, and to the same model's name at its maker."""
        if price.provider not in ("azure", "openai"):
            return None
        name = price.id.split("/")[-1].lower()
        return next((u for u in self._catalogue.provisioned_units if u.model.lower() == name), None)

    def _own(
        self,
        load: Workload,
        shape: ModelShape,
        request: CompareRequest,
        cheapest: int | None,
        left_out: list[str],
    ) -> list[Option]:
        today: date = self._clock.now().date()
        wanted = self._card(request.gpus)[0] if request.gpus else None
        on_sale = sums.buyable(self._catalogue.hardware.instance_types, today)
        if request.cloud:
            on_sale = tuple(each for each in on_sale if each.cloud == request.cloud)
            if not on_sale:
                raise _unknown("cloud", request.cloud, ("azure", "aws", "gcp"), "")
        serving = Serving(precision=_word(Precision, "precision", request.precision))
        best: list[Option] = []
        for card in self._catalogue.hardware.accelerators:
            if wanted is not None and card != wanted:
                continue
            found = self._on_card(load, shape, serving, card, on_sale, cheapest, left_out)
            best += [found] if found is not None else []
        return list(sums.cheapest_first(best)[:SELF_HOSTED_MAX])

    def _on_card(
        self,
        load: Workload,
        shape: ModelShape,
        serving: Serving,
        card: Accelerator,
        on_sale: Iterable[InstanceType],
        cheapest: int | None,
        left_out: list[str],
    ) -> Option | None:
        """The cheapest instance type with this card, or why there is none."""
        machines = [each for each in on_sale if each.accelerator == card.id]
        if not machines or not has_peak(card):
            return None
        size = int(max(each.accelerators for each in machines))
        fabric = fabric_of(card, self._link("pcie4"), self._link("ib-ndr"), size)
        capacity = sums.replica_capacity(load, shape, serving, card, fabric, self._catalogue.efficiencies)
        if capacity is None:
            left_out.append(f"{card.name}: {size} on the biggest machine do not hold {shape.id}")
            return None
        options = [sums.self_hosted_option(load, shape, capacity, each, cheapest) for each in machines]
        return next(iter(sums.cheapest_first(option for option in options if option is not None)), None)


# ---------------------------------------------------------------- words


def _training(request: SizeRequest) -> Training:
    return Training(
        precision=_word(Precision, "precision", request.precision),
        optimizer=_word(Optimizer, "optimizer", request.optimizer),
        method=_word(Method, "method", request.method),
        batch=request.batch,
        sequence=request.sequence,
        checkpointing=Checkpointing.FULL if request.checkpointing else Checkpointing.NONE,
        master_weights=request.master_weights,
        lora_rank=request.lora_rank,
        lora_targets=request.lora_targets,
        zero=request.zero,
        shards=request.shards,
        tensor_parallel=request.tensor_parallel,
        pipeline_parallel=request.pipeline_parallel,
    )


def _serving(request: SizeRequest) -> Serving:
    return Serving(
        precision=_word(Precision, "precision", request.precision),
        cache_precision=_word(Precision, "cache_precision", request.cache_precision),
        batch=request.batch,
        context=request.context,
        tensor_parallel=request.tensor_parallel,
        headroom=request.headroom,
    )


def _word(kind: type[Word], field: str, text: str) -> Word:
    try:
        return kind(text.lower())
    except ValueError:
        choices = ", ".join(kind)
        problem = Problem(field=field, message=f"{text!r} is not one of: {choices}", hint=f"choose one of {choices}")
        raise InvalidInput(str(problem), problem.hint, [problem]) from None


def _unknown(kind: str, name: str, known: Iterable[str], otherwise: str) -> InvalidInput:
    """The names that look like it, those that hold it among them; a few of all where none does."""
    names = list(dict.fromkeys(known))
    lower = {each.lower(): each for each in names}
    near = [lower[each] for each in difflib.get_close_matches(name.lower(), lower, 4, 0.5)]
    near += [each for each in names if name.lower() in each.lower() and each not in near][:3]
    hint = f"did you mean {', '.join(near)}?" if near else f"known are, among others: {', '.join(names[:6])}"
    return InvalidInput(f"no {kind} {name[:80]!r} in the catalogue", f"{hint} {otherwise}".strip())


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+|\d+(?:\.\d+)?[a-z]?", name.lower())) - {"instruct", "it", "chat", "hf"}
