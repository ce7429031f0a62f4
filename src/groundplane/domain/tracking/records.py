"""Experiments, tracked runs and what was measured in them: what a training script tells about itself as it goes.

The words are MLflow's where its clients see them. A tracked run that belongs to a Groundplane run has that run's id.
"""

from __future__ import annotations

import json
import math
import operator
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import cast

import msgspec

from groundplane.domain.model import ManifestFile, path_fault
from groundplane.domain.run import RunStatus
from groundplane.errors import InvalidInput, NotFound

DEFAULT_EXPERIMENT = "Default"
DEFAULT_EXPERIMENT_ID = "0"
"""What clients name that chose no experiment: in each project its experiment `Default`."""
KEY_CHARACTERS_MAX = 250
NAME_CHARACTERS_MAX = 500
PARAM_CHARACTERS_MAX = 6_000
TAG_CHARACTERS_MAX = 8_000
TAGS_MAX = 1_000
PARAMS_MAX = 2_000
METRICS_MAX = 5_000
BATCH_METRICS_MAX, BATCH_OTHERS_MAX, BATCH_MAX = 1_000, 100, 1_000
INPUTS_MAX = 1_000
_Row = tuple[float | str, int, int]
"""A point as it is written: value, milliseconds, step."""
_read_rows = msgspec.json.Decoder(list[_Row]).decode
_read_buckets = msgspec.json.Decoder(list[dict[str, list[_Row]]]).decode
BUCKETS = 32
"""A call with more metrics than this is stored by buckets of them."""
_KEY = re.compile(r"[/\w.\- :]+")
_INT64_MAX = 2**63 - 1


class Stage(StrEnum):
    """Deleted things are hidden and can be restored; nothing is lost."""

    ACTIVE = "active"
    DELETED = "deleted"


class TrackedState(StrEnum):
    RUNNING = "RUNNING"
    SCHEDULED = "SCHEDULED"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


class LoggedState(StrEnum):
    """Whether a logged model's files have all come."""

    PENDING = "LOGGED_MODEL_PENDING"
    READY = "LOGGED_MODEL_READY"
    FAILED = "LOGGED_MODEL_UPLOAD_FAILED"


STATE_OF: dict[RunStatus, TrackedState] = {
    RunStatus.PENDING: TrackedState.SCHEDULED,
    RunStatus.STARTING: TrackedState.SCHEDULED,
    RunStatus.RUNNING: TrackedState.RUNNING,
    RunStatus.STOPPING: TrackedState.RUNNING,
    RunStatus.SUCCEEDED: TrackedState.FINISHED,
    RunStatus.FAILED: TrackedState.FAILED,
    RunStatus.STOPPED: TrackedState.KILLED,
}
"""What a tracked run is when the Groundplane run it belongs to is that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A named group of tracked runs of one project."""

    id: str
    project: str
    name: str
    stage: Stage = Stage.ACTIVE
    tags: dict[str, str] = field(default_factory=dict)
    created_by: str
    created_at: datetime
    updated_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetUse:
    """A dataset that a tracked run says it read. `digest` is the client's own, often no SHA-256."""

    name: str
    digest: str
    source_type: str = ""
    source: str = ""
    schema: str = ""
    profile: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMade:
    """A logged model that a tracked run made, at a step."""

    model_id: str
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """One execution as its script tells it. `job` is the Groundplane run it happened in; empty outside of one.

    Parameters are written once. Times are the client's, in milliseconds since 1970.
    """

    id: str
    experiment_id: str
    project: str
    name: str
    user: str = ""
    job: str = ""
    state: TrackedState = TrackedState.RUNNING
    stage: Stage = Stage.ACTIVE
    started_ms: int
    ended_ms: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: tuple[DatasetUse, ...] = ()
    model_inputs: tuple[str, ...] = ()
    model_outputs: tuple[ModelMade, ...] = ()
    created_by: str
    created_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """The latest value of every metric of a tracked run, whose id it has. `latest` is `merged`'s text.

    Apart from the run: what is measured comes a thousand times as often as everything else is told.
    """

    id: str
    latest: str = "{}"
    batches: int = 0
    points: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPart:
    """Points of one metric, or of a bucket of metrics, that came in one call. id = `<run>#<batch>#<n>`.

    `points` is what `parts_of` wrote for `key`.
    """

    id: str
    run_id: str
    key: str
    points: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedModel:
    """A model whose files a script has logged, before anybody registers it."""

    id: str
    experiment_id: str
    project: str
    name: str
    run_id: str = ""
    model_type: str = ""
    state: LoggedState = LoggedState.PENDING
    stage: Stage = Stage.ACTIVE
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[ModelMetric, ...] = ()
    created_by: str
    created_at: datetime
    updated_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetric:
    """The latest value of a metric of a logged model on one dataset. `value` is as `number_text` writes it."""

    key: str
    value: str
    timestamp_ms: int
    step: int
    run_id: str = ""
    dataset_name: str = ""
    dataset_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedFile:
    """A file below a tracked run or a logged model. id = `<root>/<path>`."""

    id: str
    root: str
    project: str
    path: str
    sha256: str
    size_bytes: int
    created_at: datetime
    version: int = 0

    @property
    def files(self) -> tuple[ManifestFile, ...]:
        """As everything that keeps files in the artifact store says which."""
        return (ManifestFile(path=self.path, sha256=self.sha256, size_bytes=self.size_bytes),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """A registered model's name with what is said of it as a whole; it may have no version yet. id is the name."""

    id: str
    project: str
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    created_by: str
    created_at: datetime
    updated_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionOrigin:
    """Where a version that came through tracking has its files from. id is the version's."""

    id: str
    name: str
    run_id: str = ""
    model_id: str = ""
    source: str = ""
    description: str = ""
    updated_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured value. It may be no finite number: a loss that became NaN is worth knowing."""

    value: float
    timestamp_ms: int
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A point of a named metric, as it comes in; of a logged model on a dataset when it says so."""

    key: str
    point: Point
    model_id: str = ""
    dataset_name: str = ""
    dataset_digest: str = ""


# ---------------------------------------------------------------- metrics


def number_text(value: float) -> str:
    """A number as text that comes back as the same number; JSON has no NaN."""
    return repr(float(value))


def _rank(point: Point) -> tuple[int, int, bool, float]:
    """What is later: by step, then time, then value; NaN before every number."""
    is_number = not math.isnan(point.value)
    return point.step, point.timestamp_ms, is_number, point.value if is_number else 0.0


def encode_points(points: Iterable[Point]) -> str:
    """`[[value, ms, step], …]`; what is no finite number is written as text."""
    return json.dumps([_bare(point) for point in points], separators=(",", ":"))


def decode_latest(text: str) -> dict[str, Point]:
    return {key: _point(row) for key, row in json.loads(text).items()}


def _bare(point: Point) -> list[object]:
    value: object = point.value if math.isfinite(point.value) else number_text(point.value)
    return [value, point.timestamp_ms, point.step]


def _point(row: Sequence[object]) -> Point:
    value, timestamp_ms, step = cast("tuple[float | str, int, int]", row)
    return Point(value=float(value), timestamp_ms=timestamp_ms, step=step)


def merged(latest: str, measured: Iterable[Measured]) -> str:
    """The latest values after these have come too. Raises InvalidInput for more metrics than a run may have."""
    rows: dict[str, list[object]] = json.loads(latest)
    for key, points in grouped(measured).items():
        newest, known = max(points, key=_rank), rows.get(key)
        if known is None or _rank(newest) >= _rank(_point(known)):
            rows[key] = _bare(newest)
    if len(rows) > METRICS_MAX:
        raise InvalidInput(f"the run would have {len(rows)} metrics; {METRICS_MAX} is the most", "log fewer names")
    return json.dumps(rows, separators=(",", ":"))


def grouped(measured: Iterable[Measured]) -> dict[str, list[Point]]:
    """The points of each metric, in the order they came."""
    found: dict[str, list[Point]] = {}
    for each in measured:
        found.setdefault(each.key, []).append(each.point)
    return found


def bucket_of(key: str) -> str:
    """Where a metric's points lie when one call brought many metrics. No name begins like it."""
    return f"#{zlib.crc32(key.encode()) % BUCKETS:02}"


def parts_of(points: Mapping[str, Sequence[Point]]) -> dict[str, str]:
    """What is stored of one call: a row a metric, or, of many metrics, a row a bucket: a thousand rows take long."""
    if len(points) <= BUCKETS:
        return {key: encode_points(each) for key, each in points.items()}
    buckets: dict[str, dict[str, list[list[object]]]] = {}
    for key, each in points.items():
        buckets.setdefault(bucket_of(key), {})[key] = [_bare(point) for point in each]
    return {bucket: json.dumps(rows, separators=(",", ":")) for bucket, rows in buckets.items()}


def history(parts: Iterable[tuple[str, str]], key: str) -> list[Point]:
    """Every point of a metric in the order of steps and times, given (key, text) of the parts that hold it.

    A text may be of several parts, with commas between. A call that a client sent twice counts once.
    """
    rows = _rows_of(parts, frozenset((key,))).get(key, [])
    return sorted(map(_point, dict.fromkeys(rows)), key=_rank)


def drawn(parts: Iterable[tuple[str, str]], keys: Iterable[str], most: int) -> dict[str, list[Point]]:
    """What is drawn of each metric, at most so many points as `thinned` picks them: a page reads 300,000 of them."""
    found = {}
    for key, rows in _rows_of(parts, frozenset(keys)).items():
        steps = [row[2] for row in rows]
        if not all(map(operator.lt, steps, steps[1:])):  # out of order, or sent twice
            rows = sorted(dict.fromkeys(rows), key=operator.itemgetter(2, 1))
        found[key] = [_point(rows[at]) for at in _picked([float(row[0]) for row in rows], most)]
    return found


def _rows_of(parts: Iterable[tuple[str, str]], keys: frozenset[str]) -> dict[str, list[_Row]]:
    """The points of these metrics as they were written, in no order."""
    found: dict[str, list[_Row]] = {}
    for part, text in parts:
        if part in keys:
            # Parts of a single point are made one list while they are text: 300,000 lists take as long as all the rest.
            found.setdefault(part, []).extend(_read_rows(text.replace("]],[[", "],[")))
        elif part.startswith("#"):
            for rows in _read_buckets(f"[{text}]"):
                for key in keys & rows.keys():
                    found.setdefault(key, []).extend(rows[key])
    return found


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most that many points: the first, the last, and the lowest and the highest of each stretch between them, so
    that what jumps out is still seen; and one that is no finite number where there are some."""
    return [points[at] for at in _picked([point.value for point in points], most)]


def _picked(values: Sequence[float], most: int) -> list[int]:
    count = len(values)
    if count <= most or most < 2:
        return list(range(count))
    whole = math.isfinite(sum(values))
    stretches = (most - 2) // (2 if whole else 3)
    found = {0, count - 1}
    for number in range(stretches):
        start, end = (1 + at * (count - 2) // stretches for at in (number, number + 1))
        stretch = values[start:end]
        if not whole:
            odd = [at for at, value in enumerate(stretch, start) if not math.isfinite(value)]
            found.update(odd[:1])
            stretch = [value for value in stretch if math.isfinite(value)]
        if stretch:
            found |= {values.index(pick(stretch), start, end) for pick in (min, max)}
    return sorted(found)


# ---------------------------------------------------------------- what may come in


def check_key(key: str, what: str) -> str:
    """The name of a metric, parameter or tag. Raises InvalidInput."""
    if not key or len(key) > KEY_CHARACTERS_MAX:
        raise InvalidInput(f"a {what}'s name has 1 to {KEY_CHARACTERS_MAX} characters, not {len(key)}")
    # Slashes group names in pictures, so names look like paths; none may climb.
    if not _KEY.fullmatch(key) or path_fault(key) is not None:
        raise InvalidInput(
            f"{key[:80]!r} is no name of a {what}", "use letters, digits, '_', '-', '.', ' ', ':' and '/' between them"
        )
    return key


def check_value(value: str, most: int, what: str) -> str:
    if len(value) > most:
        raise InvalidInput(f"the value of {what} has {len(value):,} characters; {most:,} is the most", "shorten it")
    return value


def check_experiment_name(name: str) -> str:
    if not name.strip() or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise InvalidInput(f"an experiment's name is one line of 1 to {NAME_CHARACTERS_MAX} characters")
    return name


def check_measured(measured: Sequence[Measured]) -> None:
    for key in {each.key for each in measured}:
        check_key(key, "metric")
    for each in measured:
        point = each.point
        if not (-_INT64_MAX <= point.step <= _INT64_MAX and -_INT64_MAX <= point.timestamp_ms <= _INT64_MAX):
            raise InvalidInput(f"the step or the timestamp of metric {each.key} is beyond 64 bits")


def check_batch(metrics: int, params: int, tags: int) -> None:
    """Raises InvalidInput for more than one call may bring."""
    for what, count, most in (
        ("metrics", metrics, BATCH_METRICS_MAX),
        ("parameters", params, BATCH_OTHERS_MAX),
        ("tags", tags, BATCH_OTHERS_MAX),
        ("entries in all", metrics + params + tags, BATCH_MAX),
    ):
        if count > most:
            raise InvalidInput(f"{count:,} {what} in one call; {most:,} is the most", "send several calls")


def with_params(known: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The parameters with the new ones. Raises InvalidInput where one would change: what was tried is not rewritten."""
    for key, value in new.items():
        check_key(key, "parameter")
        check_value(value, PARAM_CHARACTERS_MAX, f"parameter {key}")
        if known.get(key, value) != value:
            raise InvalidInput(
                f"parameter {key} is {known[key][:80]!r} already and can't become {value[:80]!r}",
                "parameters are written once: log it under another name, or begin another run",
            )
    both = {**known, **new}
    if len(both) > PARAMS_MAX:
        raise InvalidInput(f"the run would have {len(both):,} parameters; {PARAMS_MAX:,} is the most")
    return both


def with_tags(known: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The tags with the new ones, which may say something else of a name. Raises InvalidInput for what is no tag."""
    for key, value in new.items():
        check_key(key, "tag")
        check_value(value, TAG_CHARACTERS_MAX, f"tag {key}")
    both = {**known, **new}
    if len(both) > TAGS_MAX:
        raise InvalidInput(f"there would be {len(both):,} tags; {TAGS_MAX:,} is the most")
    return both


def without_tag(known: Mapping[str, str], key: str) -> dict[str, str]:
    if key not in known:
        raise NotFound(f"there is no tag {key[:80]}")
    return {name: value for name, value in known.items() if name != key}


def with_model_metrics(
    known: Sequence[ModelMetric], measured: Iterable[Measured], run_id: str
) -> tuple[ModelMetric, ...]:
    """A logged model's metrics, one per name and dataset, after these have come too."""
    found = {(each.key, each.dataset_name, each.dataset_digest): each for each in known}
    for each in measured:
        found[each.key, each.dataset_name, each.dataset_digest] = ModelMetric(
            key=each.key,
            value=number_text(each.point.value),
            timestamp_ms=each.point.timestamp_ms,
            step=each.point.step,
            run_id=run_id,
            dataset_name=each.dataset_name,
            dataset_digest=each.dataset_digest,
        )
    return tuple(found.values())


def with_datasets(known: Sequence[DatasetUse], new: Sequence[DatasetUse]) -> tuple[DatasetUse, ...]:
    """Each dataset once by name and digest; one that comes again brings its tags."""
    found = {(each.name, each.digest): each for each in known}
    found.update({(each.name, each.digest): each for each in new})
    if len(found) > INPUTS_MAX:
        raise InvalidInput(f"the run would have {len(found):,} datasets; {INPUTS_MAX:,} is the most")
    return tuple(found.values())


# ---------------------------------------------------------------- files


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A file or folder right below a path."""

    path: str
    is_dir: bool
    size_bytes: int = 0


def listing(files: Iterable[tuple[str, int]], folder: str) -> list[Listed]:
    """What lies right below `folder`, given (path, size) of every file; the file itself when it is one."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, Listed] = {}
    for path, size_bytes in files:
        if path == folder:
            return [Listed(path=path, is_dir=False, size_bytes=size_bytes)]
        if not path.startswith(prefix):
            continue
        head, slash, _ = path[len(prefix) :].partition("/")
        found[prefix + head] = Listed(path=prefix + head, is_dir=bool(slash), size_bytes=0 if slash else size_bytes)
    return [found[path] for path in sorted(found)]
