"""Runs' folders under GROUND_HOME, and free loopback ports."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from groundplane.errors import InvalidInput


class HomeRunFiles:
    """ports.RunFiles on a folder: `runs/<run id>/{checkpoints,output}`, `models/<version>`."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def checkpoint_dir(self, run_id: str) -> str:
        return str(_made(self._home / "runs" / run_id / "checkpoints"))

    def output_dir(self, run_id: str) -> str:
        return str(_made(self._home / "runs" / run_id / "output"))

    def output_path(self, run_id: str, relative: str) -> Path:
        root = Path(self.output_dir(run_id)).resolve()
        path = (root / relative).resolve()
        if not path.is_relative_to(root):
            raise InvalidInput(f"output path {relative!r} leaves the run's output folder", "use a relative path")
        return path

    def model_dir(self, version_id: str) -> Path:
        return _made(self._home / "models") / version_id

    def engine_cache(self) -> Path:
        return _made(self._home / "cache" / "engine")

    def metrics(self, run_id: str) -> dict[str, float]:
        return {
            name: float(value)
            for name, value in self._object(run_id, "metrics.json").items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def hyperparameters(self, run_id: str) -> dict[str, str]:
        found = self._object(run_id, "params.json")
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}

    def _object(self, run_id: str, name: str) -> dict[str, object]:
        path = Path(self.output_dir(run_id)) / name
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise InvalidInput(f"the run's {name} can't be read: {error}", "write one flat JSON object") from None
        if not isinstance(found, dict):
            raise InvalidInput(f"the run's {name} is not a JSON object", "write {name: value, …}")
        return found

    def free_port(self) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
