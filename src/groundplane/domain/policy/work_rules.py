"""The built-in rules on the work itself: what is run, how it is kept apart, and whether what it needs is in reach."""

from __future__ import annotations

import re

from groundplane.domain.isolation import MEANING, STRENGTH, Isolation, effective
from groundplane.domain.policy.rule import Finding, Rule, Subject
from groundplane.domain.spec import EndpointSpec

# ---------------------------------------------------------------- what is run


def _command(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or (spec.command and spec.command[0].strip()):
        return None
    return Finding(need="a command", have="nothing")


def _no_schedule(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or not spec.schedule:
        return None
    return Finding(need="a job without a schedule", have=f"schedule {spec.schedule!r}")


def _absolute_paths(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec):
        return None
    paths = [("workdir", spec.workdir), *((f"data {item.name}", item.path) for item in spec.data)]
    relative = [f"{what} {path}" for what, path in paths if path and not path.startswith("/")]
    return Finding(need="absolute paths", have=", ".join(relative)) if relative else None


_ACCELERATOR_WORK = re.compile(
    r"--device[= ]cuda|\bcuda:\d|--backend[= ]nccl|--(num[-_])?gpus?[= ][1-9]"
    r"|--nproc[-_]per[-_]node[= ]gpu|--use[-_]cuda\b",
    re.IGNORECASE,
)


def _accelerator_work(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or spec.resources.accelerators:
        return None
    match = _ACCELERATOR_WORK.search(" ".join(spec.command))
    if match is None:
        return None
    return Finding(
        need=f"an accelerator for {match[0]!r} in the command",
        have="resources.accelerators: 0",
        hint="set resources.accelerators: 1 and its kind, or let the command run on CPU",
    )


def _accelerator_known(subject: Subject) -> Finding | None:
    asked, hardware = subject.spec.resources.accelerator, subject.hardware
    if not asked or not hardware.accelerators or hardware.accelerator(asked) or hardware.accelerators_like(asked):
        return None
    near = hardware.near_accelerators(asked)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    return Finding(need="an accelerator the catalogue knows", have=asked, hint=hint)


# ---------------------------------------------------------------- how it is kept apart, and checked


def _isolation_possible(subject: Subject) -> Finding | None:
    spec, best = subject.spec, subject.ranking.best
    if isinstance(spec, EndpointSpec) or best is None or not best.offer.isolation:
        return None
    mode, possible = effective(spec.isolation, subject.isolation), best.offer.isolation
    if mode.value in possible:
        return None
    return Finding(
        need=f"isolation {mode} ({MEANING[mode]})",
        have=f"pool {spec.pool} can give: {', '.join(possible)}",
        hint=f"set isolation: {possible[-1]}, or choose another pool",
    )


def _isolation_enough(subject: Subject) -> Finding | None:
    spec, least = subject.spec, subject.isolation.minimum
    if isinstance(spec, EndpointSpec) or not spec.isolation:
        return None
    if STRENGTH[Isolation(spec.isolation)] >= STRENGTH[least]:
        return None
    return Finding(need=f"isolation {least} or stronger", have=spec.isolation, hint=f"set isolation: {least}")


def _isolation_whole(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec):
        return None
    mode = effective(spec.isolation, subject.isolation)
    if mode is Isolation.PODMAN and not spec.image:
        return Finding(need="spec.image for isolation podman", have="nothing", hint="set image: to one on the nodes")
    if spec.image and mode is not Isolation.PODMAN:
        return Finding(need=f"isolation podman for image {spec.image}", have=mode, hint="set isolation: podman")
    if not spec.network and STRENGTH[mode] < STRENGTH[Isolation.BUBBLEWRAP]:
        hint = "set isolation: bubblewrap or podman"
        return Finding(need="a sandbox to take the network away", have=f"isolation {mode}", hint=hint)
    return None


def _needs_in_reach(subject: Subject) -> Finding | None:
    spec, best = subject.spec, subject.ranking.best
    if isinstance(spec, EndpointSpec) or not spec.needs or best is None or not best.offer.alone:
        return None
    return Finding(
        need=f"the output of {', '.join(spec.needs)} on the node",
        have=f"the nodes of pool {spec.pool} keep the files of runs to themselves",
    )


def _endpoint_in_reach(subject: Subject) -> Finding | None:
    best = subject.ranking.best
    if not isinstance(subject.spec, EndpointSpec) or best is None or best.offer.serves:
        return None
    return Finding(
        need="a pool whose nodes the gateway reaches",
        have=f"the nodes of pool {subject.spec.pool} are reached over SSH alone",
    )


def _asking_in_reach(subject: Subject) -> Finding | None:
    spec, unfit = subject.spec, subject.unfit
    if isinstance(spec, EndpointSpec) or spec.inference is None or not unfit:
        return None
    node, why = min(unfit.items())
    needs = "Python 3.11 and a way to the gateway" if spec.inference.asking.endpoint else "Python 3.11 and the engine"
    return Finding(need=f"nodes with {needs}", have=f"{len(unfit)} of pool {spec.pool} can't run it; {node}: {why}")


def _secrets_known(subject: Subject) -> Finding | None:
    spec = subject.spec
    missing = [] if isinstance(spec, EndpointSpec) else [name for name in spec.secrets if name not in subject.secrets]
    if not missing:
        return None
    need = f"secrets of project {spec.metadata.project}: {', '.join(missing)}"
    return Finding(need=need, have=", ".join(sorted(subject.secrets)) or "none")


def _preflight_on(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or spec.preflight:
        return None
    return Finding(need="faults of node and storage are paid for until the job meets them", have="preflight is off")


def _resume_proven(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or not spec.spot or subject.resume_proof == "proved":
        return None
    have = {"": "none was made", "running": "one is under way"}.get(subject.resume_proof, subject.resume_proof)
    return Finding(need="a resume seen after a test kill, of this very command", have=have)


def _spot_seen(subject: Subject) -> Finding | None:
    spec, blind = subject.spec, subject.spot_blind
    if isinstance(spec, EndpointSpec) or not spec.spot or not blind:
        return None
    node, why = min(blind.items())
    return Finding(
        need="a metadata service that tells when a machine is taken back",
        have=f"spot notices can't be seen on {len(blind)} nodes of pool {spec.pool}; {node}: {why}",
    )


def _spot_watched(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or spec.resources.purchase != "spot" or spec.spot:
        return None
    return Finding(need="notices are watched for with spec.spot: true", have="resources.purchase: spot alone")


WORK_RULES: tuple[Rule, ...] = (
    Rule(id="command", why="A job is a command.", hint="set spec.command", check=_command),
    Rule(
        id="absolute-paths",
        why="A node can't know what a path on the author's machine is relative to.",
        hint="ground plan -f FILE makes them absolute; over the API send absolute paths",
        check=_absolute_paths,
    ),
    Rule(
        id="no-schedule",
        why="A job with a schedule is no run to start now, but one to submit at times.",
        hint="ground schedules create -f FILE keeps it; leave the schedule out to run it once, now",
        check=_no_schedule,
    ),
    Rule(
        id="accelerator-known",
        why="A name nobody sells waits for ever.",
        hint="ground recon lists the names",
        check=_accelerator_known,
        live=True,
    ),
    Rule(
        id="accelerator-work",
        why="Accelerator work on a CPU node fails after minutes, or costs its hours many times over.",
        hint="set resources.accelerators",
        check=_accelerator_work,
    ),
    Rule(
        id="isolation-whole",
        why="A wall that is half asked for is none.",
        hint="see docs/guides/jobs.md, isolation",
        check=_isolation_whole,
        live=True,
    ),
    Rule(
        id="isolation-minimum",
        why="The installation asks for at least this much between jobs.",
        hint="set a stronger spec.isolation",
        check=_isolation_enough,
        live=True,
    ),
    Rule(
        id="isolation-possible",
        why="What a pool can't give is said before the run waits for it.",
        hint="choose another spec.isolation, or another pool",
        check=_isolation_possible,
        live=True,
    ),
    Rule(
        id="needs-in-reach",
        why="A job that can't read what it needs fails after it was paid for.",
        hint="give the pool a shared_dir in the pool file, or stage an artifact: spec.data with from: artifact:…",
        check=_needs_in_reach,
        live=True,
    ),
    Rule(
        id="endpoint-in-reach",
        why="A replica whose port the gateway can't reach would be paid for and answer nobody.",
        hint="set pool: local to serve on this machine",
        check=_endpoint_in_reach,
        live=True,
    ),
    Rule(
        id="asking-in-reach",
        why="An evaluation or a batch that can't ask its model fails after it was paid for.",
        hint="set pool: local, mend the nodes, or cordon them",
        check=_asking_in_reach,
        at_apply=False,
        live=True,
    ),
    Rule(
        id="secrets-known",
        why="A job without its secrets fails after it was paid for.",
        hint="put the file under the secrets folder: GROUND_SECRETS",
        check=_secrets_known,
        live=True,
    ),
    Rule(
        id="resume-proven",
        why="A machine that may be taken away any minute is for jobs that were seen to go on from their checkpoint.",
        hint="ground prove-resume -f FILE kills a short run once and looks; or leave spec.spot out",
        check=_resume_proven,
        live=True,
    ),
    Rule(
        id="spot-seen",
        why="Without a notice a job has no time to save: it goes on from the last checkpoint that it wrote by itself.",
        hint="write checkpoints often; on machines that no cloud takes back, leave spec.spot out",
        check=_spot_seen,
        warns=True,
        at_apply=False,
        live=True,
    ),
    Rule(
        id="spot-watched",
        why="A spot machine gives half a minute to two minutes of notice: enough to save, for who listens.",
        hint="set spec.spot: true",
        check=_spot_watched,
        warns=True,
    ),
    Rule(
        id="preflight-on",
        why="A check before the start costs seconds; the same fault at 3 a.m. costs the night.",
        hint="leave preflight out, or set it to true",
        check=_preflight_on,
        warns=True,
    ),
)
