"""What rules cost: reading them, judging a plan by them, replaying plans; each with its growth.

    python bench/policy.py [--rounds 7] [--json]

Rounds are interleaved and medians are printed. Bounds: a plan judged by 100 own rules in < 20 ms, 2,000 plans replayed
in < 10 s; the exit status is 1 beyond them.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from groundplane.domain.hardware import Hardware
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning.plan import Offer, Plan
from groundplane.domain.policy.builtin import Subject
from groundplane.domain.policy.replay import replay
from groundplane.domain.policy.rule_set import RuleSet, build, built_in, built_in_file, read_files, run_tests
from groundplane.domain.spec import JobSpec, Metadata, Resources

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
RULES, PLANS = (10, 100, 500), (200, 2_000)
JUDGE_MAX_MS, REPLAY_MAX_MS = 20.0, 10_000.0


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    sets = {0: built_in(), **{count: build(read_files({"own.yaml": text(count)})) for count in RULES}}
    about = subject()
    plans = [plan(number) for number in range(PLANS[-1])]
    work: dict[str, Callable[[], object]] = {
        "the built-in tests": lambda: run_tests([built_in_file()], built_in().settings)
    }
    for count in RULES:
        work[f"read {count} rules"] = lambda count=count: read_files({"own.yaml": text(count)})  # type: ignore[misc]
    for count, rules in sets.items():
        work[f"judge a plan, {count} own rules"] = lambda rules=rules: rules.judge(about)  # type: ignore[misc]
    for count in PLANS:
        work[f"replay {count} plans, 10 own rules"] = lambda count=count: play(sets[10], plans[:count])  # type: ignore[misc]
    took: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.rounds):
        for name, do in work.items():
            gc.collect()  # what the one before left behind is not this one's time
            began = time.perf_counter()
            do()
            took[name].append((time.perf_counter() - began) * 1_000)
    medians = {name: statistics.median(each) for name, each in took.items()}
    if options.json:
        print(json.dumps(medians, indent=1))
    else:
        for name, median_ms in medians.items():
            print(f"{name:34} {median_ms:10.2f} ms")
    slow = medians["judge a plan, 100 own rules"] > JUDGE_MAX_MS
    return int(slow or medians[f"replay {PLANS[-1]} plans, 10 own rules"] > REPLAY_MAX_MS)


def text(count: int) -> str:
    """Rules as people write them: a field, a label, a walk over a list."""
    lines = ["policy: groundplane/policy/v1", "rules:"]
    for number in range(count):
        lines += [
            f"  - id: own-{number}",
            "    over: plan",
            f"    when: spec.accelerators >= 0 && plan.worst_case_usd < {number + 1_000}.0",
            "    require: spec.labels.all(name, spec.labels[name] != '') && spec.name.matches('^[a-z-]+$')",
            "    why: A reason.",
            '    hint: "{spec.name}: use another"',
        ]
    return "\n".join(lines) + "\n"


def spec(number: int = 0) -> JobSpec:
    labels = {f"label-{index}": "x" for index in range(5)}
    return JobSpec(
        metadata=Metadata(name="bench", project="default", owner="ana", cost_center="r", labels=labels),
        command=("python", "train.py", f"--seed={number}"),
        resources=Resources(cpus=2, memory_bytes=2**31),
        end_date=NOW + timedelta(days=7),
        max_cost_microusd=500_000,
        max_duration_s=1_800,
    )


def subject(number: int = 0) -> Subject:
    offer = Offer(
        pool="local", node_type="local", cpus=8, memory_bytes=2**36, disk_free_bytes=2**38, accelerators=0,
        accelerator="", price_microusd_per_hour=100_000, price_as_of=NOW.date(), price_source="set by the operator",
    )  # fmt: skip
    return Subject(
        spec=spec(number), ranking=planning.rank(spec(number), (offer,), Hardware()), hardware=Hardware(), now=NOW,
        pools=("local",), silent_pools={},
    )  # fmt: skip


def plan(number: int) -> Plan:
    about = subject(number)
    verdicts = built_in().judge(about)
    return planning.seal(about.spec, about.ranking, verdicts, id=f"plan-{number}", created_by="ana", now=NOW)


def play(rules: RuleSet, plans: list[Plan]) -> object:
    return replay(rules, plans, {}, since=NOW)


if __name__ == "__main__":
    sys.exit(main())
