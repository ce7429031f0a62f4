"""The dialect as one table: every field, what it takes, its default and meaning.

The parser, its error messages and suggestions, and docs/reference/spec.md all come from this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from groundplane.domain.isolation import Isolation
from groundplane.domain.model import ALIAS
from groundplane.domain.scheduling.state import CLASSES, DEFAULT_CLASS
from groundplane.domain.sizing.memory import Method, Optimizer, Precision
from groundplane.domain.spec import CLASSIFICATIONS, DEV_KINDS
from groundplane.domain.spec import values as v
from groundplane.domain.spec.field import API_VERSION as API_VERSION
from groundplane.domain.spec.field import ARCHITECTURE as _ARCHITECTURE
from groundplane.domain.spec.field import BATCH as BATCH
from groundplane.domain.spec.field import BEST_BY as _BEST_BY
from groundplane.domain.spec.field import DEV as DEV
from groundplane.domain.spec.field import ENDPOINT as ENDPOINT
from groundplane.domain.spec.field import EVALUATION as EVALUATION
from groundplane.domain.spec.field import FILE_NAME as _FILE_NAME
from groundplane.domain.spec.field import IMAGE as _IMAGE
from groundplane.domain.spec.field import JOB as JOB
from groundplane.domain.spec.field import KINDS as KINDS
from groundplane.domain.spec.field import LABEL as _LABEL
from groundplane.domain.spec.field import LABEL_MEANING as _LABEL_MEANING
from groundplane.domain.spec.field import MODEL as _MODEL
from groundplane.domain.spec.field import MODEL_MEANING as _MODEL_MEANING
from groundplane.domain.spec.field import ONE_LINE as _ONE_LINE
from groundplane.domain.spec.field import PATH_INSIDE as _PATH_INSIDE
from groundplane.domain.spec.field import PERSON as _PERSON
from groundplane.domain.spec.field import SKU as _SKU
from groundplane.domain.spec.field import TIER as _TIER
from groundplane.domain.spec.field import Field as Field
from groundplane.domain.spec.inference_fields import ALSO, inference_fields

NOT_FOR_DEV = ("command", "array", "schedule", "timezone", "missed_ticks", "outputs", "hang_limit")
"""Fields of a job's spec that a dev environment has none of."""


def _common() -> Iterable[Field]:
    yield Field(
        path="apiVersion", read=v.choice(API_VERSION), takes="text", required=True, example=API_VERSION,
        meaning="The dialect's version.",
    )  # fmt: skip
    yield Field(
        path="kind", read=v.choice(*KINDS, "dev"), takes="a kind", required=True, example=JOB,
        meaning=f"What the document describes: {', '.join(KINDS)}.",
    )  # fmt: skip
    yield Field(
        path="metadata.name", read=v.text(_LABEL, _LABEL_MEANING, example="tiny-lm"), takes="name", required=True,
        example="tiny-lm", meaning="The run's name; for an endpoint the name callers put in `model`.",
    )  # fmt: skip
    yield Field(
        path="metadata.project", read=v.text(_LABEL, _LABEL_MEANING, example="default"), takes="name",
        required=True, example="default", meaning="Whose budget pays and who sees it.",
    )  # fmt: skip
    yield Field(
        path="metadata.owner", read=v.text(_PERSON, "a name on one line (at most 128 characters)", example="ana"),
        takes="text", required=True, example="ana", meaning="The person who answers for it.",
    )  # fmt: skip
    yield Field(
        path="metadata.cost_center",
        read=v.text(_PERSON, "a name on one line (at most 128 characters)", example="research"), takes="text",
        required=True, example="research", meaning="Where the money is booked.",
    )  # fmt: skip
    yield Field(
        path="metadata.labels", read=v.text_map(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", "a label key"),
        takes="mapping of text", default="none", meaning="Free tags, carried along to reports.",
    )  # fmt: skip


def _resources() -> Iterable[Field]:
    yield Field(
        path="spec.pool", read=v.text(_LABEL, _LABEL_MEANING, example="local"), takes="name", default="local",
        meaning="The pool of nodes it runs on.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.cpus", read=v.number(0.1, 4096), takes="number ≥ 0.1", required=True, example="2",
        meaning="CPU cores on each node.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.memory", read=v.size(2**20), takes="size ≥ 1MiB", required=True, example="2GiB",
        meaning="Main memory on each node.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.disk", read=v.size(0), takes="size", default="0",
        meaning="Free disk the work needs on each node.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.accelerators", read=v.integer(0, 1024), takes="whole number ≥ 0", default="0",
        meaning="Accelerators on each node.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.accelerator",
        read=v.text(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", "an accelerator's name", empty=True, example="h100-sxm-80gb"),
        takes="catalogue name or alias", default="any",
        meaning="Which accelerator; any when left out.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.nodes", read=v.integer(1, 10_000), takes="whole number ≥ 1", default="1",
        meaning="Nodes; all of them start or none does.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.instance_type", read=v.text(_SKU, "an instance type", example="Standard_D64s_v5"),
        takes="a cloud's instance type", default="any",
        meaning="The very machine that is wanted, as its cloud calls it.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.cloud", read=v.choice("azure", "aws", "gcp"), takes="`azure`, `aws` or `gcp`",
        default="none: a pool", meaning="The cloud it is meant for, instead of a pool.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.region", read=v.text(_LABEL, _LABEL_MEANING, example="eastus"), takes="a cloud's region",
        default="any", meaning="The region it must be in.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.purchase", read=v.choice("on-demand", "spot", "reserved"),
        takes="`on-demand`, `spot` or `reserved`", default="on-demand", meaning="How a cloud's machine is paid for.",
    )  # fmt: skip
    yield Field(
        path="spec.deadline", read=v.end_date, takes="date, RFC 3339 time, or duration from now",
        default="`end_date`", meaning="When the result is needed: lead times and hours are held against it.",
    )  # fmt: skip
    yield Field(
        path="spec.end_date", read=v.end_date, takes="date, RFC 3339 time, or duration from now", required=True,
        example="7d",
        meaning="When it is stopped at the latest. A plain date means through the end of that day, UTC.",
    )  # fmt: skip
    yield Field(
        path="spec.max_cost", read=v.money(), takes="dollars > 0", required=True, example="$0.50",
        meaning="The most it may cost. A plan whose worst case is above is refused.",
    )  # fmt: skip


def _job() -> Iterable[Field]:
    job = (JOB,)
    yield Field(
        path="spec.command", kinds=job, read=v.command, takes="list of text, or text", required=True,
        example="[python, train.py]", meaning="The program and its arguments; a plain text is given to `sh -c`.",
    )  # fmt: skip
    yield Field(
        path="spec.workdir", kinds=job, read=v.text(r"[^\0]{1,4096}", "a path", example="."), takes="path",
        default="an own, empty folder",
        meaning="Where the command starts. `ground` makes a relative path absolute, counted from the file's folder; "
        "over the API it must be absolute.",
    )  # fmt: skip
    yield Field(
        path="spec.env", kinds=job, read=v.text_map(r"[A-Za-z_][A-Za-z0-9_]*", "an environment variable's name"),
        takes="mapping of text", default="none",
        meaning='Environment variables. Values are text: write "1" and "yes" in quotes.',
    )  # fmt: skip
    yield Field(
        path="spec.max_duration", kinds=job, read=v.duration(), takes="duration ≥ 1s", required=True, example="30m",
        meaning="The longest it may run, all attempts together; it is stopped then.",
    )  # fmt: skip
    yield Field(
        path="spec.idle_limit", kinds=job, read=v.duration(), takes="duration ≥ 1s", default="never",
        meaning="Stop when it has done nothing (no output, no work on CPU or accelerator) for that long.",
    )  # fmt: skip
    yield Field(
        path="spec.control_plane_gone_limit", kinds=job, read=v.duration(), takes="duration ≥ 1s", default="never",
        meaning="The node stops it by itself when the control plane was silent for that long.",
    )  # fmt: skip
    yield Field(
        path="spec.stop_grace", kinds=job, read=v.duration(0), takes="duration", default="10s",
        meaning="How long it may take to end after SIGTERM, before SIGKILL.",
    )  # fmt: skip
    yield Field(
        path="spec.retry.max_attempts", kinds=job, read=v.integer(1, 100), takes="whole number ≥ 1", default="3",
        meaning="Attempts in all; only endings that another attempt may mend are tried again.",
    )  # fmt: skip
    yield Field(
        path="spec.retry.backoff", kinds=job, read=v.duration(0), takes="duration", default="1s",
        meaning="Wait before the second attempt; doubled before each further one.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].name", kinds=job, read=v.text(_MODEL, _MODEL_MEANING, example="corpus"), takes="name",
        required=True, example="corpus", meaning="What the input is called in the birth certificate.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].path", kinds=job, read=v.text(r"[^\0]{1,4096}", "a path", example="corpus.txt"),
        takes="path", default="staged: see `from`", example="corpus.txt",
        meaning="A file or folder, read where it lies; relative ones count from the spec's folder.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].sha256", kinds=job, read=v.text(r"[0-9a-f]{64}", "a SHA-256 (64 lowercase hex digits)"),
        takes="64 hex digits", default="unknown", meaning="Its digest, when known.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].dataset", kinds=job,
        read=v.text(rf"{_MODEL}@([1-9]\d{{0,8}}|latest)", "a dataset's version such as corpus@2", example="corpus@2"),
        takes="name@version", default="none", meaning="The registered dataset: it gives place, digest, classification.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].classification", kinds=job, read=v.choice(*CLASSIFICATIONS),
        takes="`public`, `internal`, `confidential` or `restricted`", default="what the installation's policy says",
        meaning="How confidential it is; the pool must be cleared for it.",
    )  # fmt: skip
    yield Field(
        path="spec.outputs.models[].name", kinds=job, read=v.text(_MODEL, _MODEL_MEANING, example="tiny-lm"),
        takes="name", required=True, example="tiny-lm",
        meaning="The model that gets a new version when the run succeeds.",
    )  # fmt: skip
    yield Field(
        path="spec.outputs.models[].path", kinds=job,
        read=v.text(_PATH_INSIDE, "a path inside the output folder", example="model"), takes="relative path",
        default=".", meaning="Its folder inside the run's output folder.",
    )  # fmt: skip
    yield Field(
        path="spec.outputs.models[].license", kinds=job,
        read=v.text(_ONE_LINE, "a licence on one line", example="Apache-2.0"), takes="SPDX name", default="unknown",
        meaning="The model's licence.",
    )  # fmt: skip
    yield Field(
        path="spec.outputs.models[].framework", kinds=job,
        read=v.text(_ONE_LINE, "a framework on one line", example="jax"), takes="text", default="unknown",
        meaning="What it was trained with.",
    )  # fmt: skip
    yield Field(
        path="spec.outputs.models[].base_model", kinds=job,
        read=v.text(_ONE_LINE, "a model on one line", example="tiny-base@3"), takes="name@version", default="unknown",
        meaning="What it was fine-tuned from; `none` when it began from nothing.",
    )  # fmt: skip
    yield Field(
        path="spec.outputs.models[].sla", kinds=job,
        read=v.text(_ONE_LINE, "a level of service on one line", example="p95 below 200 ms"), takes="text",
        default="unknown", meaning="The level of service that is promised for it.",
    )  # fmt: skip


def _training() -> Iterable[Field]:
    job = (JOB,)
    yield from _model_named("spec.training", job, "trained")
    yield Field(
        path="spec.training.method", kinds=job, read=v.choice(*Method), takes="`full`, `lora` or `qlora`",
        default="full", meaning="Whether all weights are trained, or adapters beside them.",
    )  # fmt: skip
    yield Field(
        path="spec.training.precision", kinds=job, read=v.choice(*Precision), takes="a number format",
        default="bf16", meaning=f"How weights are kept: {', '.join(Precision)}.",
    )  # fmt: skip
    yield Field(
        path="spec.training.optimizer", kinds=job, read=v.choice(*Optimizer), takes="an optimizer", default="adam",
        meaning=f"What steps: {', '.join(Optimizer)}.",
    )  # fmt: skip
    yield Field(
        path="spec.training.batch", kinds=job, read=v.integer(1, 65_536), takes="whole number ≥ 1", default="1",
        meaning="Sequences on each accelerator and step.",
    )  # fmt: skip
    yield Field(
        path="spec.training.sequence", kinds=job, read=v.integer(1, 10**7), takes="whole number ≥ 1",
        default="2048", meaning="Tokens of a sequence.",
    )  # fmt: skip
    yield Field(
        path="spec.training.gradient_checkpointing", kinds=job, read=v.boolean, takes="true or false",
        default="false", meaning="Activations are computed again instead of kept.",
    )  # fmt: skip
    yield Field(
        path="spec.training.zero", kinds=job, read=v.integer(0, 3), takes="0 to 3", default="0",
        meaning="What accelerators share of the states: nothing, or as ZeRO says; 3 is FSDP.",
    )  # fmt: skip
    yield Field(
        path="spec.training.tokens", kinds=job, read=v.count(1), takes="number such as `2B`", default="unknown",
        meaning="Tokens of the data set: with them a plan tells hours.",
    )  # fmt: skip
    yield Field(
        path="spec.training.epochs", kinds=job, read=v.number(0.001, 10_000), takes="number > 0", default="1",
        meaning="How often the data set is gone through.",
    )  # fmt: skip
    yield Field(
        path="spec.checkpoint_every", kinds=job, read=v.duration(), takes="duration ≥ 1s", default="30m assumed",
        meaning="Time between checkpoints: what an interruption costs at most, before it goes on.",
    )  # fmt: skip
    yield Field(
        path="spec.interruptions_per_day", kinds=job, read=v.number(0, 10_000), takes="number ≥ 0",
        default="the catalogue's", meaning="How often a spot machine is taken away, each, in a day.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].size", kinds=job, read=v.size(0), takes="size", default="unknown",
        meaning="How much is read in one pass.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].passes", kinds=job, read=v.integer(1, 10_000), takes="whole number ≥ 1", default="1",
        meaning="How often it is read from there.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].tier", kinds=job,
        read=v.text(_TIER, "a storage tier of the catalogue", example="az-blob-hot"),
        takes="catalogue name", default="unknown", meaning="Where it lies: `ground catalog show storage_tiers`.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].throughput", kinds=job, read=v.rate, takes="rate such as `60MB/s`",
        default="the tier's", meaning="How fast it can be read, where that was measured.",
    )  # fmt: skip


def _walls() -> Iterable[Field]:
    """How a job is kept apart, what it may know, and what is checked before it starts."""
    job = (JOB,)
    yield Field(
        path="spec.isolation", kinds=job, read=v.choice(*Isolation), takes="a way of isolation",
        default="the installation's", meaning=f"How the job is kept apart: {', '.join(Isolation)}.",
    )  # fmt: skip
    yield Field(
        path="spec.image", kinds=job, read=v.text(_IMAGE, "a container image", example="docker.io/library/python:3.12"),
        takes="a container image", default="none",
        meaning="What `isolation: podman` runs the command in; it must be on the node.",
    )  # fmt: skip
    yield Field(
        path="spec.network", kinds=job, read=v.boolean, takes="true or false", default="true",
        meaning="Whether the job reaches the network; false needs `isolation: bubblewrap` or `podman`.",
    )  # fmt: skip
    yield Field(
        path="spec.secrets", kinds=job, read=v.texts(_FILE_NAME, "a secret's name", example="hub-token"),
        takes="list of names", default="none",
        meaning="The project's secrets the job gets, as files in `$GROUND_SECRETS_DIR`.",
    )  # fmt: skip
    yield Field(
        path="spec.preflight", kinds=job, read=v.boolean, takes="true or false", default="true",
        meaning="Whether the node is checked before the command starts; without it faults are paid for.",
    )  # fmt: skip
    yield Field(
        path="spec.checkpoint_dir", kinds=job, read=v.text(r"/[^\0]{1,4095}", "an absolute path", example="/mnt/ckpt"),
        takes="absolute path", default="under GROUND_HOME",
        meaning="A folder on the nodes under which the run keeps its checkpoints, on storage all of them share.",
    )  # fmt: skip
    yield Field(
        path="spec.checkpoint_size", kinds=job, read=v.size(0), takes="size", default="unknown",
        meaning="How large one checkpoint gets: preflight then tells its cost and how often to write one.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].url", kinds=job, read=v.text(r"https?://[^\s\0]{1,4088}", "an http or https address",
        example="https://data.example/corpus.tar"), takes="http(s) address", default="none",
        meaning="Where the source is read over the network: preflight tries it from the node.",
    )  # fmt: skip


def _staging() -> Iterable[Field]:
    """Data brought to the node's own disk before the start."""
    job = (JOB,)
    yield Field(
        path="spec.data[].from", kinds=job, read=v.text(r"[^\s\0]{1,4096}", "a source", example="s3://bucket/corpus/"),
        takes="folder, `https://…`, `s3://…`, `artifact:NAME` or `model:NAME@N`", default="none: read where it lies",
        meaning="What is staged to the node before the start, verified; the job finds it in `$GROUND_DATA_<NAME>`.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].manifest", kinds=job,
        read=v.text(_PATH_INSIDE, "a path inside the source", example="SHA256SUMS"), takes="relative path",
        default="none", meaning="A file in the source with `sha256sum` lines: exactly those files are staged.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].secret", kinds=job, read=v.text(_FILE_NAME, "a secret's name", example="s3-corpus"),
        takes="one of `secrets`", default="none",
        meaning="What the source is read with: for S3 as `~/.aws/credentials` has it, for HTTP a bearer token.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].endpoint", kinds=job,
        read=v.text(r"https?://[^\s\0/]{1,255}(/[^\s\0?]{0,255})?", "an http or https address",
        example="https://s3.example.net"), takes="http(s) address", default="AWS",
        meaning="The S3-compatible store of an `s3://` source.",
    )  # fmt: skip
    yield Field(
        path="spec.data[].region", kinds=job, read=v.text(_LABEL, _LABEL_MEANING, example="eu-central-1"),
        takes="name", default="us-east-1", meaning="The region that requests to it are signed for.",
    )  # fmt: skip


def _queueing() -> Iterable[Field]:
    job = (JOB,)
    yield Field(
        path="spec.priority", kinds=job, read=v.choice(*CLASSES), takes="a priority class", default=DEFAULT_CLASS,
        meaning=f"Its class in the queue: {', '.join(CLASSES)}. A higher one starts first and may preempt a lower one.",
    )  # fmt: skip
    yield Field(
        path="spec.needs", kinds=job, read=v.texts(_LABEL, "a run's name or id", example="prepare"),
        takes="list of run names or ids", default="none",
        meaning="Runs of the project that must succeed first. `GROUND_INPUT_<NAME>` is the output folder of each.",
    )  # fmt: skip
    yield Field(
        path="spec.array", kinds=job, read=v.array, takes="range of indexes, like `1-100%10`", default="none",
        meaning="One run per index, named `<name>-<index>`, with `GROUND_ARRAY_INDEX` set; `%10` runs 10 at once.",
    )  # fmt: skip
    yield Field(
        path="spec.schedule", kinds=job,
        read=v.text(r"[^\x00-\x1f]{1,100}", "a cron expression", example='"0 3 * * 1"'),
        takes="cron expression in quotes",
        default="none", meaning="When it is submitted, again and again: `ground schedules create -f FILE` keeps it.",
    )  # fmt: skip
    yield Field(
        path="spec.timezone", kinds=job, read=v.text(r"[A-Za-z0-9_+/-]{1,64}", "a time zone", example="Europe/Berlin"),
        takes="IANA time zone", default="UTC", meaning="The zone in which the schedule's hours are read.",
    )  # fmt: skip
    yield Field(
        path="spec.missed_ticks", kinds=job, read=v.choice("once", "skip"), takes="`once` or `skip`", default="once",
        meaning="Ticks that passed while no control plane ran: one run for all of them, or none.",
    )  # fmt: skip


def _survival() -> Iterable[Field]:
    """What becomes of checkpoints, what counts as a hang, and machines that may be taken away."""
    job = (JOB,)
    yield Field(
        path="spec.checkpoints.keep_last", kinds=job, read=v.integer(1, 10_000), takes="whole number ≥ 1",
        default="all on the node, 3 copies", meaning="How many of the newest checkpoints stay, on node and in store.",
    )  # fmt: skip
    yield Field(
        path="spec.checkpoints.keep_every", kinds=job, read=v.integer(1, 10**12), takes="steps ≥ 1", default="none",
        meaning="Checkpoints whose step is a multiple of this stay too.",
    )  # fmt: skip
    yield Field(
        path="spec.checkpoints.best_by", kinds=job,
        read=v.text(_BEST_BY, "a metric and min or max", example="loss/min"), takes="`METRIC/min` or `METRIC/max`",
        default="none", meaning="The best one by this metric stays too.",
    )  # fmt: skip
    yield Field(
        path="spec.checkpoints.copy", kinds=job, read=v.boolean, takes="true or false", default="true",
        meaning="Whether checkpoints are copied to the artifact store, to be restored on any node.",
    )  # fmt: skip
    yield Field(
        path="spec.checkpoints.bandwidth", kinds=job, read=v.rate, takes="rate such as `60MB/s`",
        default="GROUND_CHECKPOINT_BANDWIDTH", meaning="How fast they are copied at most.",
    )  # fmt: skip
    yield Field(
        path="spec.hang_limit", kinds=job, read=v.duration(), takes="duration ≥ 1s", default="never",
        meaning="No output and no checkpoint for that long, or accelerators at 0 % that hold memory: it hangs. Stacks "
        "are taken and it starts again.",
    )  # fmt: skip
    yield Field(
        path="spec.spot", kinds=job, read=v.boolean, takes="true or false", default="false",
        meaning="It may run where machines are taken away: notices are watched for, and its resume must be proven.",
    )  # fmt: skip
    yield Field(
        path="spec.resources.nodes_min", kinds=job, read=v.integer(1, 10_000), takes="whole number ≥ 1",
        default="`nodes`", meaning="How few nodes do after one was lost or cordoned.",
    )  # fmt: skip


def dev_fields() -> Iterable[Field]:
    """What only a dev environment has."""
    yield Field(
        path="spec.dev", kinds=(DEV,), read=v.choice(*DEV_KINDS), takes="`shell` or `jupyter`", default="shell",
        meaning="What it holds besides shells; Jupyter must be installed in its environment.",
    )  # fmt: skip


def _serving() -> Iterable[Field]:
    endpoint = (ENDPOINT,)
    yield from _model_named("spec.serving", endpoint, "served")
    yield Field(
        path="spec.serving.precision", kinds=endpoint, read=v.choice(*Precision), takes="a number format",
        default="bf16", meaning=f"How weights are kept: {', '.join(Precision)}.",
    )  # fmt: skip
    yield Field(
        path="spec.serving.context", kinds=endpoint, read=v.integer(1, 10**8), takes="whole number ≥ 1",
        default="4096", meaning="Tokens of a sequence, prompt and answer together.",
    )  # fmt: skip
    yield Field(
        path="spec.serving.batch", kinds=endpoint, read=v.integer(1, 65_536), takes="whole number ≥ 1",
        default="1", meaning="Sequences at once.",
    )  # fmt: skip


def _model_named(section: str, kinds: tuple[str, ...], what: str) -> Iterable[Field]:
    yield Field(
        path=f"{section}.model", kinds=kinds,
        read=v.text(_ARCHITECTURE, "a model of the catalogue", example="llama-3.1-8b"), takes="catalogue name",
        default="none", meaning=f"The model that is {what}, by its shape; or give `params`.",
    )  # fmt: skip
    yield Field(
        path=f"{section}.params", kinds=kinds, read=v.count(1), takes="number such as `7B`", default="none",
        meaning="Its parameters, when its exact shape does not matter.",
    )  # fmt: skip


def _endpoint() -> Iterable[Field]:
    endpoint = (ENDPOINT,)
    yield Field(
        path="spec.model", kinds=endpoint,
        read=v.text(rf"{_MODEL}@([1-9]\d{{0,8}}|(?!latest$){ALIAS})", "a model version such as tiny-lm@1",
                    example="tiny-lm@1"),
        takes="name@version or name@alias", required=True, example="tiny-lm@1",
        meaning="The registered version that is served; an alias is taken for what it stands for when planned.",
    )  # fmt: skip
    yield Field(
        path="spec.max_duration", kinds=endpoint, read=v.duration(), takes="duration ≥ 1s",
        default="until end_date", meaning="The longest it may run; it is stopped then.",
    )  # fmt: skip
    yield Field(
        path="spec.token_price.prompt", kinds=endpoint, read=v.money(zero=True), takes="dollars", required=True,
        example="$0.10", meaning="What callers are charged per million prompt tokens.",
    )  # fmt: skip
    yield Field(
        path="spec.token_price.completion", kinds=endpoint, read=v.money(zero=True), takes="dollars", required=True,
        example="$0.40", meaning="What callers are charged per million completion tokens.",
    )  # fmt: skip
    yield Field(
        path="spec.token_price.cached", kinds=endpoint, read=v.money(zero=True), takes="dollars", default="$0",
        meaning="What callers are charged per million prompt tokens that came from the cache.",
    )  # fmt: skip
    yield Field(
        path="spec.engine", kinds=endpoint, read=v.text(_LABEL, _LABEL_MEANING, example="embedded"), takes="name",
        default="embedded", meaning="The model server.",
    )  # fmt: skip
    yield Field(
        path="spec.public", kinds=endpoint, read=v.boolean, takes="true or false", default="false",
        meaning="Reachable beyond the private network; refused without an exposure.",
    )  # fmt: skip
    yield Field(
        path="spec.ready_timeout", kinds=endpoint, read=v.duration(), takes="duration ≥ 1s", default="2m",
        meaning="How long it may take until it answers a test prompt.",
    )  # fmt: skip


def _shared(field: Field) -> Field:
    """The field, also for the kinds that are jobs of a special make."""
    parts = field.path.split(".")
    if JOB not in field.kinds or DEV in field.kinds:
        return field
    kinds = field.kinds
    if len(parts) == 1 or parts[1] not in NOT_FOR_DEV:
        kinds = (*kinds, DEV)
    if len(parts) > 1 and parts[1] in ALSO:
        kinds = (*kinds, EVALUATION, BATCH)
    return replace(field, kinds=kinds)


_EVERY: tuple[Field, ...] = (
    *_common(),
    *_job(),
    *_training(),
    *_walls(),
    *_staging(),
    *_queueing(),
    *_survival(),
    *_endpoint(),
    *_serving(),
    *_resources(),
    *dev_fields(),
    *inference_fields(),
)
FIELDS = tuple(_shared(field) for field in _EVERY)


def fields_of(kind: str) -> dict[str, Field]:
    """Path → field, of one kind of document."""
    return {field.path: field for field in FIELDS if kind in field.kinds}


def sections_of(kind: str) -> frozenset[str]:
    """Every path that holds fields: `metadata`, `spec`, `spec.resources`, `spec.data[]`, …"""
    found: set[str] = set()
    for field in FIELDS:
        parts = field.path.split(".")[:-1]
        if kind in field.kinds:
            found.update(".".join(parts[: depth + 1]) for depth in range(len(parts)))
    return frozenset(found)
