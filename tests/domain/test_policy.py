"""Each built-in rule: what passes, what does not, and the words it says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from groundplane.domain.access import Exposure
from groundplane.domain.hardware import Accelerator, Hardware, InstanceType
from groundplane.domain.model import ManifestFile, ModelVersion
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning.plan import Offer
from groundplane.domain.policy.rule import Subject
from groundplane.domain.policy.rule_set import built_in, reference
from groundplane.domain.spec import DataSource, EndpointSpec, JobSpec, Metadata, Resources, TokenPrice

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
GIB = 2**30
WHO = Metadata(name="tiny", project="default", owner="ana", cost_center="research")
JOB = JobSpec(
    metadata=WHO,
    command=("python", "train.py"),
    resources=Resources(cpus=2, memory_bytes=2 * GIB),
    end_date=NOW + timedelta(days=7),
    max_cost_microusd=500_000,
    max_duration_s=1800,
)
SERVE = EndpointSpec(
    metadata=WHO,
    model="tiny-lm@2",
    resources=Resources(cpus=2, memory_bytes=32 * GIB),
    end_date=NOW + timedelta(days=7),
    max_cost_microusd=50_000_000,
    max_duration_s=7 * 86_400,
    token_price=TokenPrice(prompt_microusd_per_million=1, completion_microusd_per_million=1),
)
NODE = Offer(
    pool="local",
    node_type="this-machine",
    cpus=8,
    memory_bytes=64 * GIB,
    disk_free_bytes=100 * GIB,
    accelerators=0,
    accelerator="",
    price_microusd_per_hour=100_000,
    price_as_of=date(2026, 11, 1),
    price_source="set by the operator",
)
H100 = Accelerator(
    id="nvidia-h100-80gb-sxm5", name="NVIDIA H100 SXM5 80GB", vendor="nvidia", architecture="Hopper",
    memory_bytes=80 * GIB, memory_nominal_gib=80, bandwidth_bytes_per_s=3_350 * 10**9, dense_tflops={"bf16": 989},
    interconnect="nvlink", interconnect_bytes_per_s=900 * 10**9, power_w=700, aliases=("H100",), as_of="2026-08-21",
    sources=("x",), estimated=False,
)  # fmt: skip
OLD_TYPE = InstanceType(
    cloud="azure", name="Standard_NC6s_v3", region="eastus", accelerators=1, accelerator="nvidia-v100-16gb", cpus=6,
    memory_bytes=112 * GIB, disk_bytes=None, network_gbps=None, rdma_gbps=None, price_microusd_per_hour=3_060_000,
    spot_microusd_per_hour=None, price_as_of=date(2026, 6, 18), quota_family="NCSv3", status="retired",
    retirement_date=date(2025, 9, 30), as_of="2026-06-18", sources=("x",), estimated=False,
)  # fmt: skip
HARDWARE = Hardware(accelerators=(H100,), instance_types=(OLD_TYPE,))


def version(size_bytes: int) -> ModelVersion:
    return ModelVersion(
        id="tiny-lm@2", name="tiny-lm", number=2, project="default", owner="ana", files=(), manifest_sha256="",
        size_bytes=size_bytes, certificate="", certificate_sha256="", created_by="ana", created_at=NOW,
    )  # fmt: skip


def subject(spec: JobSpec | EndpointSpec = JOB, *offers: Offer, **more: object) -> Subject:
    base = Subject(
        spec=spec,
        ranking=planning.rank(spec, offers or (NODE,), HARDWARE),
        hardware=HARDWARE,
        now=NOW,
        pools=("cloud", "local"),
        silent_pools={},
        model=version(GIB) if isinstance(spec, EndpointSpec) else None,
    )
    return replace(base, **more)


def said(about: Subject) -> list[str]:
    """What refuses (`rule: needs …, has … | hint`) or warns (`rule? sentence`)."""
    lines = []
    for verdict in built_in().judge(about):
        if verdict.refused is not None:
            lines.append(f"{verdict.refused} | {verdict.refused.hint}")
        if verdict.warning:
            lines.append(f"{verdict.rule}? {verdict.warning}")
    return lines


def meta(**changed: str) -> JobSpec:
    return replace(JOB, metadata=replace(WHO, **changed))


def need(**changed: object) -> JobSpec:
    return replace(JOB, resources=replace(JOB.resources, **changed))


def test_a_good_job_and_a_good_endpoint_satisfy_every_rule():
    assert said(subject()) == []
    assert said(subject(SERVE)) == []


CASES: dict[str, tuple[Subject, str]] = {
    "no owner": (subject(meta(owner=" ")), "owner: needs metadata.owner, has nothing | set metadata.owner"),
    "no cost centre": (
        subject(meta(cost_center="")),
        "cost-center: needs metadata.cost_center, has nothing | set metadata.cost_center",
    ),
    "ended": (
        subject(replace(JOB, end_date=NOW - timedelta(days=1))),
        "end-date-ahead: needs an end date after 2026-11-20 12:00 UTC, has 2026-11-19 12:00 UTC"
        " | set spec.end_date to a date in the future",
    ),
    "too far away": (
        subject(replace(JOB, end_date=NOW + timedelta(days=91))),
        "end-date-horizon: needs an end date within 90 days, has 2027-02-19 12:00 UTC, 91 days away"
        " | set spec.end_date: 90d and renew it when the work goes on",
    ),
    "longer than its end": (
        subject(replace(JOB, end_date=NOW + timedelta(minutes=20))),
        "duration-before-end: needs max_duration of at most 20m, the time left until 2026-11-20 12:20 UTC, has 30m"
        " | set max_duration: 20m, or a later end_date",
    ),
    "no command": (subject(replace(JOB, command=())), "command: needs a command, has nothing | set spec.command"),
    "relative paths": (
        subject(replace(JOB, workdir="work", data=(DataSource(name="corpus", path="corpus.txt"),))),
        "absolute-paths: needs absolute paths, has workdir work, data corpus corpus.txt"
        " | ground plan -f FILE makes them absolute; over the API send absolute paths",
    ),
    "a kind without a number": (
        subject(need(accelerator="h100")),
        "accelerator-counted: needs a number of h100, has resources.accelerators: 0"
        " | set resources.accelerators, or remove resources.accelerator",
    ),
    "accelerator work on a CPU": (
        subject(replace(JOB, command=("python", "train.py", "--device", "cuda"))),
        "accelerator-work: needs an accelerator for '--device cuda' in the command, has resources.accelerators: 0"
        " | set resources.accelerators: 1 and its kind, or let the command run on CPU",
    ),
    "a pool nobody has": (
        subject(replace(JOB, pool="locl")),
        "pool-known: needs one of the pools: cloud, local, has locl | set spec.pool to one of them",
    ),
    "too big for every node": (
        subject(need(memory_bytes=128 * GIB, cpus=9.0)),
        "offer-fits: needs 9 CPUs; 128.0 GiB memory, has cpus 8; memory 64.0 GiB on local/this-machine"
        " | lower resources.cpus to 8",
    ),
    "a pool without nodes": (
        subject(replace(JOB, pool="cloud"), replace(NODE, pool="local"), ranking=planning.rank(JOB, (), HARDWARE)),
        "offer-fits: needs an offer, has pool cloud has no nodes | choose another pool",
    ),
    "a silent pool": (
        subject(ranking=planning.rank(JOB, (), HARDWARE), silent_pools={"local": "no answer after 5 s"}),
        "offer-fits: needs an offer, has pool local does not answer: no answer after 5 s"
        " | try again, or choose another pool",
    ),
    "dearer than allowed": (
        subject(replace(JOB, max_cost_microusd=30_000)),
        "max-cost: needs $0.05 in the worst case ($0.10/h × 1 node × 0.50 h = $0.05), has max_cost $0.03"
        " | max_duration: 18m fits, or set max_cost: $0.05",
    ),
    "dearer than allowed for even a second": (
        subject(replace(JOB, max_cost_microusd=1)),
        "max-cost: needs $0.05 in the worst case ($0.10/h × 1 node × 0.50 h = $0.05), has max_cost $0.000001"
        " | set max_cost: $0.05",
    ),
    "a stale price": (
        subject(JOB, replace(NODE, price_as_of=date(2026, 10, 1))),
        "price-fresh? the price is of 2026-10-01, 50 days old; at most 30 days are trusted:"
        " set the price anew, with its date",
    ),
    "a price from the future": (
        subject(JOB, replace(NODE, price_as_of=date(2027, 1, 1))),
        "price-fresh? the price is of 2027-01-01, which is still to come; at most 30 days are trusted:"
        " set the price anew, with its date",
    ),
    "a price of zero": (
        subject(JOB, replace(NODE, price_microusd_per_hour=0)),
        "price-not-zero? local/this-machine costs $0/h; a price above $0 bounds the cost:"
        " set an hourly price: GROUND_LOCAL_PRICE for this machine",
    ),
    "a simulated pool": (
        subject(JOB, replace(NODE, simulated=True)),
        "real-hardware? pool local is simulated; nothing of it is measured on real hardware:"
        " choose another pool for real work",
    ),
    "a retired machine": (
        subject(JOB, replace(NODE, node_type="standard_nc6s_v3")),
        "not-retired: needs an instance type still sold on 2026-11-20, has Standard_NC6s_v3, retired on 2025-09-30"
        " | choose a current instance type: ground recon",
    ),
    "a model nobody registered": (
        subject(SERVE, model=None, known_versions=("other@1", "tiny-lm@1")),
        "model-exists: needs a registered model version, has tiny-lm@2 | registered: tiny-lm@1",
    ),
    "no models at all": (
        subject(SERVE, model=None),
        "model-exists: needs a registered model version, has tiny-lm@2 | ground models list shows what is registered",
    ),
    # The 2 a.m. loop: a 7B model in 16-bit, 14 GB of weights, under a limit of 16 GiB, exit 137 at shard 48 of 64.
    "weights that fit once but not while loading": (
        subject(replace(SERVE, resources=Resources(cpus=2, memory_bytes=16 * GIB)), model=version(14 * GIB)),
        "model-memory: needs 2 × 14.0 GiB of weights = 28.0 GiB, has resources.memory 16.0 GiB"
        " | set resources.memory: 28GiB, or serve a smaller or quantised model",
    ),
    "weights that nothing here knows how to load": (
        subject(
            SERVE, model=replace(version(GIB), files=(ManifestFile(path="w.safetensors", sha256="", size_bytes=1),))
        ),
        "model-files: needs config.json, tokenizer.json, model.safetensors in tiny-lm@2, has w.safetensors"
        " | register the folder that save_pretrained wrote, with its tokenizer, or use an engine of your own",
    ),
    "public without an exposure": (
        subject(replace(SERVE, public=True)),
        "public-needs-exposure: needs an exposure with owner, reason and expiry, has none"
        " | set public: false, or record one: ground exposures add",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_a_rule_says_what_it_needs_what_there_is_and_what_to_do(case: str):
    about, expected = CASES[case]
    assert said(about) == [expected]


def test_a_misspelt_accelerator_is_suggested_and_a_family_name_is_known():
    gpu = replace(NODE, accelerators=1, accelerator="NVIDIA H100 80GB HBM3")
    assert said(subject(need(accelerators=1, accelerator="h100"), gpu)) == []
    first, second = said(subject(need(accelerators=1, accelerator="h10"), gpu))
    assert first == "accelerator-known: needs an accelerator the catalogue knows, has h10 | did you mean h100?"
    assert second.startswith("offer-fits: needs h10, has accelerator NVIDIA H100 80GB HBM3 on local/this-machine")


def test_a_machine_retired_before_the_work_ends_is_a_warning():
    soon = replace(OLD_TYPE, status="retirement_announced", retirement_date=date(2026, 11, 25))
    about = subject(JOB, replace(NODE, node_type=soon.name), hardware=Hardware(instance_types=(soon,)))
    assert said(about) == [
        "not-retiring? Standard_NC6s_v3 is retired on 2026-11-25; the end date is 2026-11-27:"
        " choose an instance type without a retirement date"
    ]


def test_an_exposure_permits_until_it_expires():
    public = replace(SERVE, public=True)
    until = Exposure(id="tiny", owner="ana", reason="demo", created_at=NOW, expires_at=NOW + timedelta(hours=1))
    assert said(subject(public, exposure=until)) == []
    (only,) = said(subject(public, exposure=replace(until, expires_at=NOW)))
    assert "has one that expired on 2026-11-20 12:00 UTC" in only


def test_time_that_passes_between_plan_and_apply_shortens_no_promise():
    tight = replace(JOB, end_date=NOW + timedelta(seconds=1800))
    assert said(subject(tight)) == []
    later = subject(tight, now=NOW + timedelta(seconds=60))
    assert "duration-before-end" in {v.rule for v in built_in().judge(later) if v.refused}
    assert {v.rule for v in built_in().judge(later, at_apply=True) if v.refused} == set()


def test_words_that_only_look_like_accelerator_work_pass():
    for words in (
        ("cat", "/data/cuda-notes.txt"),
        ("env", "CUDA_VISIBLE_DEVICES="),
        ("run", "--gpus=0"),
        ("nvidia-smi",),
    ):
        assert said(subject(replace(JOB, command=words))) == []


def test_every_rule_is_documented_and_the_page_is_current():
    assert all(rule.why.endswith(".") and rule.hint for rule in built_in().infos())
    page = Path(__file__).parents[2] / "docs" / "reference" / "policy.md"
    assert page.read_text(encoding="utf-8") == reference(), "write rule_set.reference() to docs/reference/policy.md"
