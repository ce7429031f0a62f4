"""How a job is kept apart from this node: nothing, another user, a bubblewrap sandbox, a podman container.

`user` and `bubblewrap` under a runner with root rights give the job a user id of its own and a view of the file system
without the home folder but for the job's own folders. Each mode has everything the ones before it have.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import shutil
import stat
import subprocess
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document

MODES = ("none", "user", "bubblewrap", "podman")
FIRST_UID, UIDS = 710_000, 1_000
CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 32, 4096, 16384, 1 << 19
PR_SET_NO_NEW_PRIVS = 38
# Where people and programs leave what is theirs; a job in a sandbox gets empty ones.
EMPTY_FOLDERS = ("/home", "/root", "/tmp", "/var/tmp", "/run", "/srv", "/mnt", "/media")  # noqa: S108
NOT_FOR_CONTAINERS = ("PATH", "HOME", "TMPDIR", "TZ")  # the image has its own
TRIAL_S = 20.0


class NotPossible(Exception):
    """This node can't keep a job apart in the way that is asked for; the text says why."""


class Sandbox:
    """One attempt's walls. `prepare` in the runner, `enter` and `argv` in the forked child, `close` at the end."""

    def __init__(self, folder: Path, order: Document, workdir: str) -> None:
        asked = order.get("isolation") or {}
        self.mode = asked.get("mode") or "none"
        self.folder, self.order, self.workdir = folder, order, workdir
        self.home = folder.parents[1]
        self.image, self.network = asked.get("image") or "", asked.get("network", True)
        self._first = asked.get("first_uid") or FIRST_UID
        self._uids = asked.get("uids") or UIDS
        self.uid = 0
        self._lock = -1
        self.secrets_dir = ""
        self.container = f"ground-{folder.name}" if self.mode == "podman" else ""
        self.staged = ""  # the folder of the attempt's staged data

    @property
    def wraps(self) -> bool:
        """Whether a program of the sandbox stands between the runner and the command."""
        return self.mode in ("bubblewrap", "podman")

    @property
    def changes_user(self) -> bool:
        return self.mode != "none" and os.geteuid() == 0

    def writable(self) -> list[str]:
        """The attempt's own folders."""
        return [str(self.folder / "work"), self.order["checkpoint_dir"], self.order["output_dir"]]

    def readable(self) -> list[str]:
        """What the order names besides: its working folder, its data, its secrets. Only what is there."""
        named = [self.workdir, *self.order.get("readable", ()), self.staged]
        own = self.writable()
        return [path for path in (*dict.fromkeys(named), self.secrets_dir) if path and path not in own and _seen(path)]

    # ---- in the runner

    def prepare(self) -> None:
        """Takes a user id for the attempt and hands its folders over. NotPossible where the node can't."""
        if self.mode not in MODES:
            raise NotPossible(f"isolation {self.mode!r} is not known here")
        if self.mode == "user" and os.geteuid() != 0:
            raise NotPossible("another user for the job needs a runner with root rights")
        for program in {"bubblewrap": ("bwrap",), "podman": ("podman",)}.get(self.mode, ()):
            if shutil.which(program) is None:
                raise NotPossible(f"{program} is not installed")
        if self.changes_user:
            self.uid = self._take_uid()
            for path in self.writable():
                hand_over(Path(path), self.uid)
        self._lay_secrets()

    def close(self) -> None:
        """Takes away what lies outside the attempt's folder."""
        clear_away({"secrets_dir": self.secrets_dir, "container": self.container})
        if self._lock >= 0:
            os.close(self._lock)

    def _take_uid(self) -> int:
        """The first id of the range that no living attempt holds, from one that the run is likely to have had."""
        locks = self.home / "run" / "uids"
        locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        start = sum(self.order["run_id"].encode())
        for step in range(self._uids):
            uid = self._first + (start + step) % self._uids
            lock = os.open(locks / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                self._lock = lock
                return uid
        raise NotPossible(f"all {self._uids} user ids for jobs are taken")

    def _lay_secrets(self) -> None:
        """Writes secrets to files in memory, which only the job's user reads, and out of the order."""
        secrets = self.order.pop("secrets", None) or {}
        if not secrets:
            return
        memory = Path("/dev/shm")  # noqa: S108 (a folder of our own in it, for us alone)
        place = memory / f"ground-{self.folder.name}" if _is_memory(memory) else self.folder / "secrets"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
        for name, text in secrets.items():
            file = os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
            with os.fdopen(file, "wb") as target:
                target.write(text.encode("utf-8", "surrogateescape"))
        if self.uid:
            hand_over(place, self.uid)
        self.secrets_dir = str(place)

    # ---- in the forked child

    def enter(self) -> None:
        """Becomes the job's user, with its own folders and without the home. OSError where the kernel says no."""
        if not self.uid or self.mode == "podman":
            return  # podman changes the user itself
        own = [(path, True) for path in self.writable() if _seen(path)]
        hide_home(self.home, [*own, *([(self.staged, False)] if self.staged else [])])
        os.setgroups([])
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.uid, self.uid, self.uid)
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    def argv(self, env: dict[str, str]) -> list[str]:
        """The command, inside the sandbox's own program where there is one."""
        command = list(self.order["command"])
        if self.mode == "bubblewrap":
            return [*self._bubblewrap(), "--", *command]
        if self.mode == "podman":
            return [*self._podman(env), self.image, *command]
        return command

    def around(self, command: list[str], env: dict[str, str]) -> list[str]:
        """Another command as this job's would be started, beside it: behind the same walls, in the same image."""
        other = Sandbox(self.folder, {**self.order, "command": command}, self.workdir)
        other.uid, other.secrets_dir, other.staged = self.uid, "", self.staged
        if self.container:
            other.container = f"{self.container}-look"
            other.order["output_dir"] = other.order["checkpoint_dir"] = str(self.folder / "work")
        return other.argv(env)

    def trouble(self, code: int | None, said: bytes) -> tuple[str, str] | None:
        """(end reason, message) when it was the sandbox that failed and not the command, by its exit code and words.

        Source: podman-run(1), exit status: 125 podman itself, 126 not executable, 127 not found.
        """
        words = said.decode(errors="replace").strip().splitlines()
        last = words[-1] if words else ""
        if self.mode == "bubblewrap" and code == 1 and last.startswith("bwrap: "):
            missing = last.startswith("bwrap: execvp")
            return ("command-not-found" if missing else "start-failed"), last
        if self.container and code == 125:
            return "start-failed", f"podman could not start the container: {last}"
        if self.container and code in (126, 127):
            return "command-not-found", f"the image has no such program: {last}"
        return None

    def _bubblewrap(self) -> list[str]:
        """Source: bwrap(1). What is mounted later covers what was mounted before."""
        words = ["bwrap", "--die-with-parent", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        words += ["--unshare-cgroup-try", "--hostname", "job"]
        words += [] if self.network else ["--unshare-net"]
        words += ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
        for device in device_files(self.order.get("accelerator_indexes") or []):
            words += ["--dev-bind", device, device]
        for empty in EMPTY_FOLDERS:
            if Path(empty).is_dir() and not Path(empty).is_symlink():
                words += ["--tmpfs", empty]
        if not any(_inside(self.home, empty) for empty in EMPTY_FOLDERS):
            words += ["--tmpfs", str(self.home)]
        for path in (*_programs_of(self.order["command"][0], self.order["env"].get("PATH", "")), *self.readable()):
            words += ["--ro-bind-try", path, path]
        for path in self.writable():
            words += ["--bind", path, path]
        return [*words, "--chdir", self.workdir]

    def _podman(self, env: dict[str, str]) -> list[str]:
        """Source: podman-run(1). `--init` is left out: it needs a program that podman does not bring."""
        order = self.order
        words = ["podman", *podman_engine(), "run", "--rm", "--replace", f"--name={self.container}", "--pull=never"]
        words += [f"--network={'host' if self.network else 'none'}", "--cap-drop=all", *_ulimits()]
        words += ["--security-opt=no-new-privileges", "--log-driver=none", f"--workdir={self.workdir}"]
        words += [f"--user={self.uid}:{self.uid}"] if self.uid else ["--userns=keep-id"]
        if order["memory_bytes"]:
            words += [f"--memory={order['memory_bytes']}b", f"--memory-swap={order['memory_bytes']}b"]
        words += [f"--cpus={order['cpus']}"] if order.get("cpus") else []
        words += [f"--pids-limit={order['pids_limit']}"] if order.get("pids_limit") else []
        words += [f"--env={name}" for name in sorted(env) if name in order["env"] or name not in NOT_FOR_CONTAINERS]
        words += [f"--device={device}" for device in device_files(order.get("accelerator_indexes") or [])]
        words += [f"--volume={path}:{path}:rw" for path in self.writable()]
        return words + [f"--volume={path}:{path}:ro" for path in self.readable()]


def clear_away(state: Document) -> None:
    """Removes what an attempt left outside its folder, by what its state says: twice is the same as once."""
    if state.get("secrets_dir"):
        shutil.rmtree(state["secrets_dir"], ignore_errors=True)
    if state.get("container"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["podman", *podman_engine(), "rm", "--force", "--ignore", "--time=0", state["container"]],
                capture_output=True, timeout=TRIAL_S, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip


def hand_over(place: Path, uid: int) -> None:
    """Gives a folder and what is in it to a user. Links are not followed, and a file with several names stays."""
    for root, folders, files in os.walk(place):
        for path in (Path(root), *(Path(root, name) for name in (*folders, *files))):
            found = os.lstat(path)
            if found.st_uid != uid and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                os.chown(path, uid, uid, follow_symlinks=False)


def hide_home(home: Path, own: list[tuple[str, bool]]) -> None:
    """Covers the home folder for this process and its children, all but `own` (path, writable). Needs root rights.

    Where a folder above home lets no stranger through, that one is covered: behind it was nothing for the job anyway.
    """
    _call("unshare", CLONE_NEWNS)
    _mount("none", "/", "", MS_REC | MS_SLAVE)
    # Held before they are covered, and after the change: folders of another view can't be bound into this one.
    held = [(path, writable, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path, writable in own]
    closed = [above for above in reversed(home.parents) if not above.stat().st_mode & stat.S_IXOTH]
    cover = str(closed[0] if closed else home)
    _mount("tmpfs", cover, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    for path, writable, descriptor in held:
        Path(path).mkdir(mode=0o755, parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{descriptor}", path, "", MS_BIND | MS_REC)
        if not writable:
            _mount("none", path, "", MS_BIND | MS_REMOUNT | MS_RDONLY)
        os.close(descriptor)
    _mount("none", cover, "", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def possible_modes() -> dict[str, str]:
    """Mode → "" when this node can do it, else why not. Each is tried for real."""
    found = {"none": "", "user": "", "bubblewrap": "", "podman": ""}
    if os.geteuid() != 0:
        found["user"] = "the runner has no root rights"
    else:
        found["user"] = _private_mounts()
    trial = ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--unshare-all", "--die-with-parent", "true"]
    found["bubblewrap"] = found["user"] if os.geteuid() == 0 and found["user"] else _tried(["bwrap", *trial])
    found["podman"] = _tried(["podman", *podman_engine(), "ps", "--quiet"])
    return found


def podman_engine() -> list[str]:
    """Without systemd nobody else keeps cgroups: podman does it itself."""
    return [] if Path("/run/systemd/system").exists() else ["--cgroup-manager=cgroupfs"]


def image_present(image: str) -> bool:
    return _tried(["podman", *podman_engine(), "image", "exists", image]) == ""


def device_files(indexes: list[int]) -> list[str]:
    """The device files of these cards, and those that every card needs. Source: NVIDIA driver README, device nodes."""
    if not indexes:
        return []
    shared = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
    return [path for path in (*(f"/dev/nvidia{index}" for index in indexes), *shared) if Path(path).exists()]


def _private_mounts() -> str:
    """Tried in a child: "" when a process may have mounts of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _call("unshare", CLONE_NEWNS)
            _mount("none", "/", "", MS_REC | MS_SLAVE)
            status = 0
        finally:
            os._exit(status)
    return "" if os.waitpid(child, 0)[1] == 0 else "this container allows no mounts of one's own"


def _tried(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TRIAL_S, check=False, stdin=subprocess.DEVNULL, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not answer within {TRIAL_S:g} s"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else said[-1] if said else f"{command[0]} exited with status {done.returncode}"


def _ulimits() -> list[str]:
    """Our own limits: podman's defaults may be higher than a runner in a container may set."""
    words = []
    for name, number, most in (("nofile", resource.RLIMIT_NOFILE, 2**20), ("nproc", resource.RLIMIT_NPROC, 2**15)):
        soft, hard = (
            most if limit == resource.RLIM_INFINITY else min(limit, most) for limit in resource.getrlimit(number)
        )
        words.append(f"--ulimit={name}={soft}:{hard}")
    return words


def _programs_of(program: str, path: str) -> list[str]:
    """The folders a program outside the system lives in: its virtual environment, and the Python behind that."""
    found = shutil.which(program, path=path or None)
    if found is None or not Path(found).is_absolute():
        return []
    folders = [str(Path(found).parent)]
    for place in (Path(found), Path(found).resolve()):
        if place.parent.name == "bin":
            folders.append(str(place.parents[1]))
    return [each for each in dict.fromkeys(folders) if any(_inside(Path(each), empty) for empty in EMPTY_FOLDERS)]


def _inside(path: Path, folder: str) -> bool:
    return path != Path(folder) and Path(folder) in path.parents


def _seen(path: str) -> bool:
    with contextlib.suppress(OSError):
        Path(path).stat()
        return True
    return False


def _is_memory(place: Path) -> bool:
    """Whether a folder is on a file system in memory: what lies there survives no power cut."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return any(line.split()[1:3] == [str(place), "tmpfs"] for line in lines) and os.access(place, os.W_OK)
    return False


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def _call(name: str, *arguments: object) -> None:
    """A system call of the C library. OSError when it fails."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, f"{name}: {os.strerror(number)}")
