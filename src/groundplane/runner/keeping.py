"""Checkpoints on a node as the control plane handles them: looked for, brought back piece by piece, taken away."""

from __future__ import annotations

import base64
import os
import shutil
from pathlib import Path

from groundplane.runner.checkpoints import Checkpoints
from groundplane.runner.files import open_inside
from groundplane.runner.refusal import No

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from groundplane.runner.files import Document


class CheckpointDesk:
    """The part of a desk that handles checkpoints. `run_folder` and `attempt_folder` find their folders by id."""

    def __init__(self, run_folder: Callable[[str], Path], attempt_folder: Callable[[str], Path]) -> None:
        self._run_folder, self._attempt_folder = run_folder, attempt_folder
        self.operations: tuple[Callable[..., Document], ...] = (
            *(self.newest_step, self.arrived, self.bring, self.finish, self.discard),
            self.stacks,
        )

    def newest_step(self, run_id: str, folder: str) -> Document:
        return {"step": self._shelf(run_id, folder).newest_step()}

    def arrived(self, run_id: str, folder: str, name: str) -> Document:
        return {"files": self._shelf(run_id, folder).arrived(name)}

    def bring(self, run_id: str, folder: str, name: str, path: str, offset: int, data: str) -> Document:
        """The next piece of a file of a checkpoint."""
        try:
            self._shelf(run_id, folder).write(name, path, offset, data)
        except ValueError as error:
            raise No("conflict", str(error), "ask what has arrived") from error
        return {}

    def finish(self, run_id: str, folder: str, name: str) -> Document:
        return {"whole": self._shelf(run_id, folder).finish(name)}

    def discard(self, run_id: str, folder: str, paths: Sequence[str]) -> Document:
        try:
            self._shelf(run_id, folder).discard(paths)
        except ValueError as error:
            raise No("invalid-input", str(error)) from error
        return {}

    def stacks(self, attempt_id: str) -> Document:
        """What the attempt's processes were doing when it was taken for hung; "" when it never was."""
        path = self._attempt_folder(attempt_id) / "stacks.txt"
        return {"text": path.read_text(errors="replace") if path.exists() else ""}

    def _shelf(self, run_id: str, folder: str) -> Shelf:
        return Shelf(Path(folder) if folder else self._run_folder(run_id) / "checkpoints")


class Shelf:
    """One run's checkpoint folder. What is being brought lies under `.<name>.part` until all of it is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest_step(self) -> int | None:
        """Of checkpoints whose files all have their sizes; the runner hashes them before it resumes from one."""
        return max((found["step"] for found in Checkpoints(self._folder).whole()), default=None)

    def arrived(self, name: str) -> dict[str, int]:
        """What is there of a checkpoint that is being brought: path → bytes."""
        part = self._part(name)
        return {str(path.relative_to(part)): path.stat().st_size for path in part.rglob("*") if path.is_file()}

    def write(self, name: str, path: str, offset: int, data: str) -> None:
        """Appends to a file of it. ValueError when the piece is not the next one."""
        part = self._part(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        if part.is_symlink():  # the folder is the job's: nothing of it leads us elsewhere
            part.unlink()
        part.mkdir(exist_ok=True)
        with os.fdopen(open_inside(part, path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
            size = os.fstat(file.fileno()).st_size
            if size != offset:
                raise ValueError(f"{path} has {size} bytes; the piece begins at {offset}")
            file.write(base64.b64decode(data))

    def finish(self, name: str) -> bool:
        """Hashes what was brought and puts it in place. False when it is not whole: it is thrown away then."""
        part, place = self._part(name), self._inside(self._folder, name)
        if part.is_symlink() or not part.is_dir():
            return place.is_dir() and Checkpoints(self._folder).verify(place) is not None
        if Checkpoints(self._folder).verify(part) is None:
            shutil.rmtree(part)
            return False
        for path in part.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with os.fdopen(open_inside(part, str(path.relative_to(part))), "rb") as file:
                    os.fsync(file.fileno())
        if place.exists():  # damaged, or older words under the same name
            self._throw_away(place)
        part.rename(place)
        return True

    def discard(self, paths: Sequence[str]) -> None:
        """Takes checkpoints away: out of sight first, so that none is ever seen in part. Twice is the same as once."""
        for text in paths:
            path = Path(text)
            if path.parent != self._folder or path.name.startswith("."):
                raise ValueError(f"{text} is no checkpoint in {self._folder}")
            self._throw_away(path)
        if self._folder.is_dir():
            for left in self._folder.glob(".removed-*"):
                shutil.rmtree(left, ignore_errors=True)

    def _throw_away(self, path: Path) -> None:
        if path.is_symlink() or not path.is_dir():
            return
        gone = path.with_name(f".removed-{path.name}")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _part(self, name: str) -> Path:
        return self._inside(self._folder, f".{name}.part")

    def _inside(self, folder: Path, path: str) -> Path:
        relative = Path(path)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise ValueError(f"{path!r} leaves {folder}")
        return folder / relative
