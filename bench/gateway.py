"""What a request and a streamed frame cost through the gateway, beside other proxies and beside no proxy at all.

    python bench/gateway.py                                     two parts, with what is installed
    python bench/gateway.py --install --only all --rounds 5     `make bench-gateway`: installs peers into a cache first
    python bench/gateway.py --only requests,streams --subjects nginx,ours-T0,ours-T1,ours-T2 --json
    python bench/gateway.py --only thousand,workers,latency --subjects direct,nginx,envoy,ours-T2      about six minutes
    python bench/gateway.py --only memory --memory-requests 1000000                                    about two

Ours is measured in three tiers: T0 forwards; T1 adds limits of requests and tokens, and metrics; T2, as in production,
adds dollars and the durable usage log (T0 and T1 look a key up too). nginx and Envoy only forward (T0); LiteLLM without
a key or a database and Portkey do what they can't help doing. Rounds are interleaved, medians are printed. CPU time is
the figure to trust on a machine that others use too; latencies are read beside `direct` on the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import operator
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from _gateway_peers import PEERS, install
from _gateway_subjects import FLOOD, LONGEST_S, Failed, Subject, Yard, may_cap

OURS = ("ours-T0", "ours-T1", "ours-T2")
ADDED = ("added_p50_ms", "added_p99_ms", "p50_ms", "p99_ms", "unanswered")
_QUIET_P99_MS = 5.0
"""Where nginx takes longer than this at 1,000 requests a second, the machine is too busy to tell what we add."""
Row = dict[str, float | None]
Table = dict[str, Row]


class Bench:
    """The parts. Each returns a table: a row of figures by subject."""

    def __init__(self, yard: Yard, options: argparse.Namespace) -> None:
        self.yard = yard
        self.options = options
        self._twins: dict[str, Subject] = {}
        self.said: list[str] = []

    @functools.cached_property
    def subjects(self) -> list[Subject]:
        """Those to set side by side, started by the first part that does."""
        wanted = self.options.subjects or ["direct", *PEERS, *OURS]
        return [one for one in map(self.yard.subject, wanted) if one is not None]

    def all(self, part: str) -> Iterator[Subject]:
        """Those that still do what this part asks. One that does not is left out of it from then on, and that is said;
        when it is ours, nothing that follows is worth reading."""
        for one in self.subjects:
            if (one.name, part) not in self.yard.faults:
                yield one

    @contextlib.contextmanager
    def measuring(self, one: Subject, part: str) -> Iterator[None]:
        try:
            yield
        except Failed as error:
            if one.name.startswith("ours"):
                raise SystemExit(f"error: {one.name}: {error}") from None
            self.yard.faults[one.name, part] = str(error)

    # ------------------------------------------------------------ what work costs

    def requests(self) -> Table:
        """CPU per request and saturation: connections that ask as fast as they are answered."""
        for _ in range(self.options.rounds):
            for one in self.all("requests"):
                with self.measuring(one, "requests"):
                    self._answers(one, one.name)
                    if one.name == "ours-T2":
                        self._answers(one, "ours-T2 varied", varied=True)
        return self._table(("cpu_us_per_request", "x_nginx", "per_s", "p50_ms", "p99_ms"), "cpu_us_per_request")

    def _answers(self, one: Subject, name: str, **more: object) -> None:
        subject = one if name == one.name else self._twin(one, name)
        connections = 8 if one.slow else self.options.connections
        before_s = one.cpu_s()
        told = one.load("answers", connections=connections, seconds=self.options.seconds, **more)
        if one.tier >= 0:  # the process there is the upstream itself
            subject.note("cpu_us_per_request", (one.cpu_s() - before_s) / told["requests"] * 1e6)
        for figure in ("per_s", "p50_ms", "p99_ms"):
            subject.note(figure, told[figure])

    def streams(self) -> Table:
        """CPU per frame: 50 streams at once, a frame each 10 ms, as models send them."""
        for _ in range(self.options.rounds):
            for one in self.all("streams"):
                if one.tier < 0:
                    continue
                with self.measuring(one, "streams"):
                    before_s = one.cpu_s()
                    told = one.load("streams", streams=4 if one.slow else 50)
                    one.note("cpu_us_per_frame", (one.cpu_s() - before_s) / told["frames"] * 1e6)
                    one.note("first_p50_ms", told["first_p50_ms"])
                    one.note("first_p99_ms", told["first_p99_ms"])
        return self._table(("cpu_us_per_frame", "x_nginx", "first_p50_ms", "first_p99_ms"), "cpu_us_per_frame")

    def workers(self) -> Table:
        """One worker and several, each with the same part of a core: how much more they do together."""
        single, several = self.yard.subject("ours-worker"), self.yard.subject("ours-workers")
        if single is None or several is None:
            return {}
        names = {single.name: "1 worker", several.name: f"{self.yard.workers} workers"}
        for number in range(self.options.rounds):
            for one in (single, several)[:: 1 if number % 2 else -1]:
                before_s = one.cpu_s()
                told = one.load("answers", connections=self.options.connections, seconds=max(2.0, self.options.seconds))
                spent_s = one.cpu_s() - before_s
                one.note("cpu_us_per_request", spent_s / told["requests"] * 1e6)
                one.note("cores", spent_s * told["per_s"] / told["requests"])
                for figure in ("per_s", "p50_ms", "p99_ms"):
                    one.note(figure, told[figure])
        figures = ("per_s", "cpu_us_per_request", "cores", "p50_ms", "p99_ms")
        table = {names[one.name]: self._row(one, figures) for one in (single, several)}
        times = statistics.median(map(operator.truediv, several.figures["per_s"], single.figures["per_s"]))
        table[names[several.name]]["x_one"] = times
        cores, count = len(os.sched_getaffinity(0)), self.yard.workers
        if self.yard.cap:
            where = "a core of its own" if cores > count else "the first core, which all share; the load on the last"
            self.said.append(f"each worker had {self.yard.cap:.0%} of a core, kept by a cgroup, on {where}")
        elif cores <= count:
            self.said.append(f"{cores} cores, no cgroup to bound {count} workers by: they share cores with the load")
        had = min((one.median("cores") or 0.0) / len(one.processes) for one in (single, several))
        why = f"a worker had {had:.2f} of its {self.yard.cap:.2f} cores: other work took them"
        self._judge(
            f"{count} workers do × what one does",
            times,
            0.9 * count,
            at_least=True,
            unless=why if had < 0.8 * self.yard.cap else "",
        )
        return table

    # ------------------------------------------------------------ latency

    def latency(self) -> Table:
        """Open loop at 10, 50 and 80 % of each one's own saturation: what it adds to the way without it."""
        table: Table = {}
        rates: dict[str, float] = {}
        for one in self.all("latency"):
            if one.tier >= 0:
                with self.measuring(one, "latency"):
                    connections = 8 if one.slow else 64
                    rates[one.name] = one.load("answers", connections=connections, seconds=self.options.seconds)[
                        "per_s"
                    ]
        for percent in (10, 50, 80):
            for number in range(self.options.rounds):
                for one in self.all("latency"):
                    if one.name in rates and not (one.slow and number):  # a slow one gets one long round
                        with self.measuring(one, "latency"):
                            for figure, value in self._added(one, max(1.0, rates[one.name] * percent / 100)).items():
                                one.note(f"{figure} {percent}", value)
        for one in self.subjects:
            for percent in (10, 50, 80):
                if one.median(f"p50_ms {percent}") is not None:
                    row = {figure: one.median(f"{figure} {percent}") for figure in ADDED}
                    table[f"{one.name} {percent} %"] = {"rate_per_s": rates[one.name] * percent / 100, **row}
        return table

    def thousand(self) -> Table:
        """1,000 requests a second: what is added to nginx's p99, pair by pair of runs next to each other."""
        seconds = max(4.0, self.options.seconds)
        found = [one for one in self.all("thousand") if not one.slow]
        for number in range(self.options.rounds):
            for one in found[:: 1 if number % 2 else -1]:
                if (one.name, "thousand") in self.yard.faults:
                    continue
                with self.measuring(one, "thousand"):
                    before_s = one.cpu_s()
                    told = one.load("paced", rate=1_000, seconds=seconds, connections=16)
                    one.note("cpu_us_per_request 1000", (one.cpu_s() - before_s) / told["requests"] * 1e6)
                    for figure in ("p50_ms", "p99_ms", "unanswered"):
                        one.note(f"{figure} 1000", told[figure])
        table: Table = {}
        base = next((one.figures.get("p99_ms 1000") for one in found if one.name == "nginx"), None)
        for one in found:
            mine = one.figures.get("p99_ms 1000")
            if mine:
                table[one.name] = {name: one.median(f"{name} 1000") for name in ("p50_ms", "p99_ms", "unanswered")}
                paired = base is not None and len(base) == len(mine)
                over = statistics.median(map(operator.sub, mine, base or ())) if paired else None
                table[one.name]["p99_over_nginx_ms"] = over
                table[one.name]["cpu_us_per_request"] = None if one.tier < 0 else one.median("cpu_us_per_request 1000")
                if one.name == "ours-T2" and over is not None:
                    usual_ms = statistics.median(base or ())
                    why = f"nginx's own p99 is {usual_ms:.1f} ms: other work took the cores"
                    what = "ms that ours-T2, on one core, adds to nginx's p99 at 1,000 a second"
                    self._judge(what, over, 1.0, unless=why if usual_ms > _QUIET_P99_MS else "")
        return table

    def _added(self, one: Subject, rate: float) -> dict[str, float]:
        seconds = min(10.0, max(self.options.seconds, 300 / rate))  # a 99th percentile wants hundreds of requests
        direct = self.yard.direct.load("paced", rate=rate, seconds=seconds, connections=16)
        told = one.load("paced", rate=rate, seconds=seconds, connections=16)
        added = {f"added_{figure}": told[figure] - direct[figure] for figure in ("p50_ms", "p99_ms")}
        return added | {"p50_ms": told["p50_ms"], "p99_ms": told["p99_ms"], "unanswered": told["unanswered"]}

    def flood(self) -> Table:
        """One tenant asks without end and is refused nearly always; another asks 100 times a second."""
        table: Table = {}
        ours = self.yard.subject("ours-T2")
        if ours is None:
            return table
        asked = {"rate": 100, "seconds": max(3.0, self.options.seconds), "connections": 8}
        for name in ("quiet", "flooded"):
            with contextlib.ExitStack() as stack:
                if name == "flooded":
                    command = ours.command("answers", connections=64, seconds=60, secret=FLOOD, good=[200, 429, 503])
                    flooding = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                    stack.callback(flooding.wait)
                    stack.callback(flooding.terminate)
                rounds = [ours.load("paced", **asked) for _ in range(self.options.rounds)]
            ranked = sorted(rounds, key=lambda told: told["p99_ms"])
            middle = ranked[len(ranked) // 2]
            table[name] = {figure: middle[figure] for figure in ("p50_ms", "p99_ms", "per_s", "unanswered")}
        return table

    # ------------------------------------------------------------ what lasts

    def memory(self) -> Table:
        """Memory of its own (without mapped files) after each tenth of many requests; the last nine make the slope."""
        ours, part = self.yard.subject("ours-T2"), max(1, self.options.memory_requests // 10)
        if ours is None:
            return {}
        rows: Table = {"at first": {"requests": 0.0, "own_mib": ours.own_bytes() / 2**20}}
        seen: list[tuple[float, float]] = []
        done = 0.0
        for _ in range(10):
            done += ours.load("answers", connections=64, requests=part, seconds=LONGEST_S / 2)["requests"]
            seen.append((done, ours.own_bytes()))
            rows[f"after {done:,.0f}"] = {"requests": done, "own_mib": seen[-1][1] / 2**20}
        slope = statistics.linear_regression(*zip(*seen[1:], strict=True)).slope
        rows["slope"] = {"bytes_per_request": slope}
        self._judge("bytes of memory that each request leaves behind", slope, 8.0)
        return rows

    def held(self) -> Table:
        """1,000 streams at once on one worker."""
        table: Table = {}
        for name in ("nginx", "ours-T2"):
            one = self.yard.subject(name)
            if one is not None:
                rss, before_s = one.rss_bytes(), one.cpu_s()
                told = one.load("streams", streams=self.options.streams, failures=True)
                frames = max(1.0, told["frames"])
                table[name] = {
                    "whole": told["whole"],
                    "failed": told["failed"],
                    "cpu_us_per_frame": (one.cpu_s() - before_s) / frames * 1e6,
                    "first_p50_ms": told["first_p50_ms"],
                    "first_p99_ms": told["first_p99_ms"],
                    "rss_mib_more": (one.rss_bytes() - rss) / 2**20,
                }
        return table

    def leave(self) -> Table:
        """A caller hangs up in the middle of a stream: when its upstream's connection breaks."""
        table: Table = {}
        for one in self.all("leave"):
            if one.slow:
                continue
            with self.measuring(one, "leave"):
                told = one.load("leave", count=100, upstream=self.yard.upstream_port)
                table[one.name] = {figure: told[figure] for figure in ("p50_ms", "p99_ms", "max_ms")}
        return table

    # ------------------------------------------------------------ rows

    def _judge(self, what: str, value: float, bound: float, *, at_least: bool = False, unless: str = "") -> None:
        """Holds a figure against its goal; `unless` says why it can't be."""
        kept = value >= bound if at_least else value <= bound
        verdict = f"goal NOT JUDGED ({unless})" if unless else "goal kept" if kept else "goal MISSED"
        self.said.append(f"{verdict}: {value:.2f} {what}, {'at least' if at_least else 'at most'} {bound:g} wanted")

    def _twin(self, one: Subject, name: str) -> Subject:
        """The same processes under another name, for figures of another kind of load."""
        return self._twins.setdefault(name, Subject(name, one.tier, one.port, one.processes))

    def _row(self, one: Subject, figures: tuple[str, ...]) -> Row:
        return {figure: one.median(figure) for figure in figures if figure != "x_nginx"}

    def _table(self, figures: tuple[str, ...], of: str) -> Table:
        """Rows with the ratio to nginx of one figure."""
        nginx = next((one.median(of) for one in self.subjects if one.name == "nginx"), None)
        table: Table = {}
        for one in [*self.subjects, *self._twins.values()]:
            row = self._row(one, figures)
            value = row.get(of)
            if any(figure is not None for figure in row.values()) and "worker" not in one.name:
                row["x_nginx"] = None if nginx is None or value is None else value / nginx
                table[one.name] = {figure: row[figure] for figure in figures}
        return table


PARTS: dict[str, Callable[[Bench], Table]] = {
    "requests": Bench.requests,
    "streams": Bench.streams,
    "latency": Bench.latency,
    "thousand": Bench.thousand,
    "workers": Bench.workers,
    "flood": Bench.flood,
    "held": Bench.held,
    "leave": Bench.leave,
    "memory": Bench.memory,
}
USUAL = ("requests", "streams")


def main() -> None:
    options = _arguments()
    if options.install:
        for name, why in install(list(PEERS)).items():
            print(f"note: {name} can't be installed: {why}")
    told: dict[str, Table] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        cap = options.cap / 100 if options.cap and "workers" in options.only and may_cap() else 0.0
        bench = Bench(Yard(Path(folder), stack, options.workers, cap), options)
        for name in options.only:
            told[name] = PARTS[name](bench)
            if not options.json:
                show(name, PARTS[name].__doc__ or "", told[name])
        absent = bench.yard.absent | {f"{name} ({part})": why for (name, part), why in bench.yard.faults.items()}
    if options.json:
        print(json.dumps({"parts": told, "said": bench.said, "absent": absent, "rounds": options.rounds}, indent=1))
        return
    for name, why in absent.items():
        print(f"note: {name} was not measured: {why}")
    for line in bench.said:
        print(line)
    print(f"medians of {options.rounds} interleaved rounds")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=_parts, default=USUAL, help=f"parts: all, or of {', '.join(PARTS)}")
    parser.add_argument(
        "--subjects", type=lambda text: text.split(","), help="direct, a peer, ours-T0, ours-T1, ours-T2"
    )
    parser.add_argument("--install", action="store_true", help="install peers into the cache first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.2, help="length of one round of requests per subject")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="of the part `workers`")
    parser.add_argument("--cap", type=int, default=30, help="percent of a core of each of `workers`; 0: no bound")
    parser.add_argument("--streams", type=int, default=1_000, help="of the part `held`")
    parser.add_argument("--memory-requests", type=int, default=100_000, help="of the part `memory`")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _parts(text: str) -> tuple[str, ...]:
    wanted = tuple(PARTS) if text == "all" else tuple(text.split(","))
    unknown = [one for one in wanted if one not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; one of: {', '.join(PARTS)}")
    return wanted


def show(name: str, meaning: str, table: Table) -> None:
    print(f"== {name}: {meaning.splitlines()[0] if meaning else ''}")
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    width = max(map(len, table), default=0) + 2
    print(" " * width + "".join(f"{column:>20}" for column in columns))
    for subject, row in table.items():
        cells = [_cell(row.get(column)) for column in columns]
        print(f"{subject:<{width}}" + "".join(f"{cell:>20}" for cell in cells))
    print(flush=True)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()
