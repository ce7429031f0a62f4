"""The work a spec describes, held against a machine: does its memory hold it, and how many hours does it take there.

Memory and time are `sizing_report`'s sums; a machine without accelerators is given what its processors can multiply.
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass, replace

from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.sizing.memory import (
    Checkpointing,
    Method,
    Optimizer,
    Precision,
    Serving,
    Training,
    gb,
    usable_bytes,
)
from groundplane.domain.sizing.model_shape import ModelShape, typical_shape
from groundplane.domain.sizing.parallelism import fabric_of
from groundplane.domain.sizing.report import SizeReport, cpu_memory, size_serving, size_training
from groundplane.domain.sizing.roofline import training_flops_per_token
from groundplane.domain.spec import EndpointSpec, JobSpec, ServingNeed, TrainingNeed
from groundplane.errors import InvalidInput, Refused

GFLOPS_PER_VCPU = 90
"""Peak of one vCPU in FP32: half a core of two 512-bit multiply-add units at 2.8 GHz, 2 × 16 × 2 × 2.8 ÷ 2 = 89.6.
Our estimate for current server processors; older and smaller ones do less."""

USUAL_NODE_CARDS = 8
"""Where only a kind of accelerator is known, a node is taken to have so many."""

HOURS_MAX = 10**6
"""A century: what takes longer is told as that, so that sums of money stay within 64 bits."""

SMALL_MODEL_PARAMS = 10**9
"""Below so many parameters, training on processors is a choice; from there on it is taken for a mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is trained or served. One of `training` and `serving` is set. `tokens` is 0 when the amount is not known."""

    shape: ModelShape
    training: Training | None = None
    serving: Serving | None = None
    tokens: int = 0
    epochs: float = 1.0

    @property
    def words(self) -> str:
        """`7B in fp16, adam`: for sentences."""
        size = f"{self.shape.params / 1e9:.3g}B parameters"
        name = size if self.shape.estimated else f"{self.shape.id} ({size})"
        if self.training is not None:
            return f"{name} trained ({self.training.method}, {self.training.precision}, {self.training.optimizer})"
        assert self.serving is not None
        return f"{name} served in {self.serving.precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """The work on one kind of machine. Hours are None when the amount of work, or the card's speed, is not known.

    `short` says what stands in the way, None when nothing does.
    """

    hours: float | None = None
    short: Refused | None = None
    report: SizeReport | None = None
    note: str = ""


def work_of(spec: JobSpec | EndpointSpec, catalogue: Catalogue) -> Work | Refused | None:
    """The work as the spec says it; None when it says nothing, a refusal when it says what can't be."""
    need: TrainingNeed | ServingNeed | None = spec.training if isinstance(spec, JobSpec) else spec.serving
    if need is None:
        return None
    section = "training" if isinstance(need, TrainingNeed) else "serving"
    if bool(need.model) == bool(need.params):
        have = f"model {need.model} and params {need.params:,}" if need.model else "neither"
        hint = f"keep one of spec.{section}.model and spec.{section}.params"
        return Refused(rule="work", need=f"spec.{section} names its model once", have=have, hint=hint)
    try:
        shape = catalogue.model(need.model) if need.model else typical_shape(need.params)
    except InvalidInput as error:
        field = f"spec.{section}.params is a size of a language model"
        return Refused(rule="work", need=field, have=f"{need.params:,}", hint=error.hint)
    if shape is None:
        names = [model.id for model in catalogue.models]
        near = difflib.get_close_matches(need.model.lower(), names, 3, 0.4)
        hint = f"did you mean {', '.join(near)}? or " if near else ""
        return Refused(
            rule="work",
            need=f"spec.{section}.model is a model of the catalogue",
            have=need.model,
            hint=f"{hint}give its size: spec.{section}.params: 7B",
        )
    if isinstance(need, ServingNeed):
        serving = Serving(precision=Precision(need.precision), context=need.context, batch=need.batch)
        return Work(shape=shape, serving=serving)
    training = Training(
        precision=Precision(need.precision),
        optimizer=Optimizer(need.optimizer),
        method=Method(need.method),
        batch=need.batch,
        sequence=need.sequence,
        checkpointing=Checkpointing.FULL if need.gradient_checkpointing else Checkpointing.NONE,
        zero=need.zero,
    )
    return Work(shape=shape, training=training, tokens=need.tokens, epochs=need.epochs)


def main_memory(work: Work) -> tuple[int, str]:
    """Main memory that loading takes: twice the weights, and the sum."""
    way = work.training or work.serving
    assert way is not None
    return cpu_memory(work.shape, way.precision)


class Meter:
    """Holds work against machines. Sums of the same work on the same cards are made once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._on_cards = functools.cache(self._sum_up)

    def on(
        self, work: Work, *, accelerator: str, accelerators: int, cpus: float, nodes: int, of: int = USUAL_NODE_CARDS
    ) -> Fitness:
        """The work on so many nodes of a kind, on so many accelerators `of` those each has (0: processors alone)."""
        if accelerators < 1:
            return self._on_processors(work, cpus, nodes)
        return self._on_cards(work, accelerator, accelerators, nodes, max(of, accelerators))

    def _sum_up(self, work: Work, accelerator: str, accelerators: int, nodes: int, of: int) -> Fitness:
        known = self._catalogue
        card = known.hardware.accelerator(accelerator)
        if card is None:
            return Fitness(note=f"no memory or speed is known of {accelerator or 'its accelerator'}")
        fabric = fabric_of(card, known.links["pcie4"], known.links["ib-ndr"], of)
        cards, count = known.hardware.accelerators, accelerators * nodes
        try:
            if work.training is not None:
                training = work.training
                if training.zero and count > 1:
                    training = replace(training, shards=count)
                report = size_training(
                    work.shape,
                    training,
                    cards,
                    card=card,
                    fabric=fabric,
                    efficiencies=known.efficiencies,
                    count=count,
                    dataset_tokens=work.tokens,
                    epochs=work.epochs,
                )
            else:
                assert work.serving is not None
                serving = work.serving
                split = max(n for n in range(1, accelerators + 1) if work.shape.heads % n == 0)
                report = size_serving(
                    work.shape,
                    serving,
                    cards,
                    card=card,
                    fabric=fabric,
                    efficiencies=known.efficiencies,
                    count=split,
                )
        except InvalidInput as error:
            wrong = Refused(rule="work", need="work that can be done", have=error.message, hint=error.hint)
            return Fitness(short=wrong)
        short = None if report.fits else _too_big(work, report, card.name, count, usable_bytes(card))
        total = report.estimate.total if report.estimate is not None else None
        if total is None or not report.fits:
            why = "" if report.fits and work.tokens else "spec.training.tokens would tell its hours"
            return Fitness(short=short, report=report, note=why if work.training is not None else "")
        return Fitness(hours=_hours(total.expected_s), short=short, report=report)

    def _on_processors(self, work: Work, cpus: float, nodes: int) -> Fitness:
        share = self._catalogue.efficiencies["training-compute"]
        if work.training is None or not work.tokens:
            return Fitness()
        per_token, _ = training_flops_per_token(work.shape, work.training)
        seconds = per_token * work.tokens * work.epochs / (cpus * nodes * GFLOPS_PER_VCPU * 1e9)
        note = (
            f"{per_token * work.tokens * work.epochs:.3g} FLOP ÷ ({cpus * nodes:g} vCPUs × {GFLOPS_PER_VCPU} GFLOP/s)"
            f" at {share.low:.0%} to {share.high:.0%} of peak"
        )
        return Fitness(hours=_hours(seconds / share.expected), note=note)


def _hours(seconds: float) -> float:
    return min(seconds / 3600, HOURS_MAX)


def _too_big(work: Work, report: SizeReport, card: str, count: int, usable: int) -> Refused:
    parts = " + ".join(f"{gb(line.size_bytes)} {line.name}" for line in report.lines)
    each = " on each" if count > 1 else ""
    fixes = "; ".join(f"{number}. {fix.what}" for number, fix in enumerate(report.fixes, 1))
    return Refused(
        rule="accelerator-memory",
        need=f"{gb(report.per_card_bytes)} for {work.words}{each} ({parts})",
        have=f"{gb(usable)} usable of {count} × {card}",
        hint=f"in order: {fixes}" if fixes else "take more or bigger accelerators",
    )
