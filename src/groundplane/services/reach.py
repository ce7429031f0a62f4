"""Where our own programs run: what nodes lack for them, their way to the gateway, and what they have written there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from groundplane.domain.node import Cordon
from groundplane.domain.provenance.required_facts import Stage
from groundplane.domain.run import Attempt, Observation, Run
from groundplane.domain.spec import JobSpec
from groundplane.domain.spec.inference import BatchNeed, EvaluationNeed
from groundplane.errors import Unavailable
from groundplane.jobs.files import put_bytes
from groundplane.ports import Executor, ModelServer, RunFiles, Store
from groundplane.services.models import Models

log = logging.getLogger(__name__)


class ProgramExecutor(Executor, Protocol):
    """An executor whose nodes may run our own programs."""

    @property
    def python(self) -> str:
        """What runs Python on the nodes, as a shell reads it; "" where they are this machine and have what it has."""
        ...

    async def unfit(self, packages: Sequence[str], address: str) -> Mapping[str, str]:
        """Nodes whose Python is too old, lacks one of the packages, or has no way to the address; each with why.

        Without an address no way is asked for. Nodes that do not answer are left out. Asking changes nothing.
        """
        ...

    async def open_way(self, attempt_id: str, address: str) -> None:
        """Holds a way from the attempt's folder to an address that is seen from here, until it is released.

        Twice is the same as once; what is cut is made anew. It dies with this process: then ask again. Unavailable.
        """
        ...

    async def output_file(self, attempt_id: str, run_id: str, path: str) -> bytes | None:
        """The first 4 MiB of a file of the run's output on another machine; None when it can't be read now."""
        ...


class Reach:
    """`gateway` is the gateway's address as seen from this machine: `host:port`."""

    def __init__(
        self,
        *,
        store: Store,
        executors: Mapping[str, ProgramExecutor],
        engines: Mapping[str, ModelServer],
        models: Models,
        files: RunFiles,
        gateway: str,
    ) -> None:
        self._store, self._executors, self._engines = store, executors, engines
        self._models, self._files, self._gateway = models, files, gateway

    def python_of(self, pool: str) -> str:
        """What runs Python in a pool of other machines; "" for this machine's own."""
        executor = self._executors.get(pool)
        return executor.python if executor is not None else ""

    def packages(self, spec: JobSpec) -> Sequence[str]:
        """What must be installed where a version is served beside an evaluation or a batch."""
        need = spec.inference
        engine = self._engines.get(need.asking.engine) if need is not None and need.asking.model else None
        return engine.packages if engine is not None else ()

    async def unfit(self, spec: JobSpec) -> Mapping[str, str]:
        """Nodes of its pool that take work and on which this evaluation or batch can't run, each with why.

        Raises IntegrityFailure and Refusal for a version that may not be laid out for it.
        """
        need, executor = spec.inference, self._executors.get(spec.pool)
        if need is None or executor is None:
            return {}
        if need.asking.model:
            await self._models.cleared(need.asking.model, stage_of(spec))
        found = await executor.unfit(self.packages(spec), self._gateway if models_asked(need) else "")
        async with self._store.transaction() as tx:
            cordoned = {each.node for each in await tx.find(Cordon, {"pool": spec.pool})}
        return {node: why for node, why in found.items() if node not in cordoned}

    async def attend(self, run: Run, attempt: Attempt, seen: Observation) -> None:
        """Keeps the way open for as long as the job is at work. A job whose way is late waits for it."""
        need, executor = run.spec.inference, self._executors.get(attempt.pool)
        if need is None or executor is None or seen.state not in {"starting", "running"} or not models_asked(need):
            return
        try:
            await executor.open_way(attempt.id, self._gateway)
        except Unavailable as error:
            log.warning("%s has no way to the gateway: %s", run.id, error.message)

    async def bring(self, run: Run, attempt: Attempt) -> None:
        """Everything that the job wrote on another machine is then here too. Unavailable; twice brings what changed."""
        executor = self._executors.get(attempt.pool)
        if executor is not None and executor.python:
            await executor.bring_outputs(attempt.id, run.id, Path(self._files.output_dir(run.id)))

    async def refresh(self, run: Run, name: str) -> None:
        """One small file of a job that is at work, as it is now, where another machine has it."""
        executor = self._executors.get(run.pool)
        if executor is None or not executor.python or run.status.is_over or not run.attempt:
            return
        content = await executor.output_file(f"{run.id}-{run.attempt}", run.id, name)
        if content is not None:
            await asyncio.to_thread(put_bytes, self._files.output_path(run.id, name), content)


def stage_of(spec: JobSpec) -> Stage:
    """What must be known of a version that it asks: an evaluation is where facts that come later come from."""
    return Stage.REGISTER if spec.evaluation is not None else Stage.LOAD


def models_asked(need: EvaluationNeed | BatchNeed) -> tuple[str, ...]:
    """The names that are asked through the gateway, the target first."""
    judges = need.judges if isinstance(need, EvaluationNeed) else ()
    return tuple(dict.fromkeys(name for name in (need.asking.endpoint, *(each.model for each in judges)) if name))
