"""Attempts as processes of this machine: one folder and one runner each, which outlive the control plane."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from groundplane.adapters.executors.channels import RUNNER, DirectChannel
from groundplane.adapters.executors.links import Link
from groundplane.adapters.executors.nodes import NodesExecutor, RunnerOptions
from groundplane.ports import Clock
from groundplane.runner.desk import Desk


class LocalExecutor(NodesExecutor):
    """ports.Executor on this machine. `root` is GROUND_HOME; `python` runs the runners (any version ≥ 3.9)."""

    def __init__(
        self,
        root: Path,
        clock: Clock,
        *,
        python: str = sys.executable,
        pool: str = "local",
        options: RunnerOptions | None = None,
        runner: Path = RUNNER,
    ) -> None:
        options = options or RunnerOptions()
        desk = Desk(
            root,
            pool=pool,
            nvml_library=options.nvml_library,
            reservations=root / "run",
            program=(python, "-I", "-S", str(runner)),
        )
        link = Link(name=os.uname().nodename, channel=DirectChannel(desk), node_type="local")
        super().__init__(pool, [link], clock, options=options)
