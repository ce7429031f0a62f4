"""`ground models adopt`: a stray model walks to a birth certificate."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from groundplane.cli import model_tools, render
from groundplane.cli.model_facts import DATA, data_of, facts_of, further_facts, metrics_of, remarks
from groundplane.cli.options import Money, connect, output_option
from groundplane.cli.words import counted
from groundplane.domain.model import check_name
from groundplane.domain.provenance.certificate import (
    MAY_BE_UNKNOWN,
    AdoptedFile,
    DataFact,
    Facts,
    MissingFact,
    missing_facts,
    misstated,
)
from groundplane.domain.scanning.model_formats import Format
from groundplane.domain.scanning.report import judge_scan, refusals_of
from groundplane.errors import GroundError, NotFound, Refusal, Refused

LOOK_EVERY_S = 0.3
SHOWN = 6


@click.command()
@click.argument("source", metavar="FILE|DIR|hf:…|mlflow:…")
@click.option("--name", required=True, help="The model's name.")
@click.option("--project", default="default", show_default=True)
@click.option("--owner", default="", help="Who answers for it.")
@click.option("--license", "license_", default="", metavar="SPDX-ID", help="Under which terms it may be used.")
@click.option("--framework", default="", help="What made it and loads it; told from the files when not given.")
@click.option("--base-model", default="", metavar="NAME@VERSION", help="What it was fine-tuned from.")
@click.option("--data", multiple=True, metavar=DATA, help="What it was trained on; may be given again.")
@click.option("--code-commit", default="", metavar="COMMIT", help="Which code made it.")
@click.option("--training-run", default="", metavar="ID", help="Which run made it.")
@click.option("--metric", multiple=True, metavar="NAME=VALUE", help="How good it is; may be given again.")
@click.option("--hardware", default="", metavar="TEXT", help="On what it was made.")
@click.option("--cost", type=Money(), metavar="USD", help="What it cost.")
@click.option("--description", default="")
@further_facts
@click.option("--unknown", multiple=True, metavar="FACT=WHY", help=f"One of {', '.join(MAY_BE_UNKNOWN)}, and why.")
@click.option("--leave-out", multiple=True, metavar="PATTERN", help="Files that stay behind, such as 'optimizer*'.")
@output_option
def adopt(source: str, name: str, project: str, leave_out: Sequence[str], output: str, **stated: object) -> None:
    """Walk a stray model to a certificate: scanned, weights out of pickles, registered with what is known of it.

    Weights in pickles become safetensors in a process without network, files or identity, and every tensor is compared.
    What is missing is asked for on a terminal; what nobody knows is stated in the certificate, with the reason.
    A model can come from a hub (hf:org/name@revision; HF_ENDPOINT, HF_TOKEN) or from a tracking server
    (mlflow:models:/NAME/VERSION, mlflow:runs:/RUN/PATH; MLFLOW_TRACKING_URI): facts they state are taken over.
    """
    check_name(name)
    facts = _facts(stated)
    if not (source.startswith(("hf:", "mlflow:")) or Path(source).exists()):
        raise NotFound(f"there is no file or folder {source}", "give a model's file or folder, hf:… or mlflow:…")
    with tempfile.TemporaryDirectory(prefix="ground-adopt-") as scratch:
        folder, local = Path(scratch) / "model", source
        folder.mkdir()
        if source.startswith(("hf:", "mlflow:")):
            (Path(scratch) / "source").mkdir()
            local = str(Path(scratch) / "source")
            told = model_tools.fetch(source, local)
            source = told["source"]
            facts = _taken_over(facts, told["facts"])
        facts = _ask(facts, source)
        with _growing(folder, "converting", Path(local)):
            files, converted, left_out = model_tools.adopt(local, str(folder), leave_out)
        report = judge_scan(source, files, license=facts.license)
        if refused := refusals_of(report):
            raise Refusal(refused)
        adopted = tuple(AdoptedFile(**{**file, "left_out": tuple(file["left_out"])}) for file in converted)
        facts = replace(
            facts,
            framework=facts.framework or _framework(files),
            adopted=adopted,
            adopted_from=source if source.startswith(("hf:", "mlflow:")) else Path(source).name,
        )
        present = {file.path: folder / file.path for file in files}
        with connect() as client:
            upload = client.create_upload()
            with render.progress(f"uploading {name}", sum(file.size_bytes for file in files)) as advance:
                client.upload_files(upload, present, advance)
            version = client.register_model(name, upload_id=upload.id, project=project, facts=facts)
    lines = [
        f"adopted {version.id}: {counted(len(version.files), 'file')}, certificate sha256:{version.certificate_sha256}"
    ]
    for file in adopted:
        how = f"{file.tensors} tensors, each compared" if file.tensors else "names the converted files"
        lines += [f"  {file.source_path} → {file.path}: {how}"]
        lines += [f"    left out of it: {_listed(file.left_out)}"] if file.left_out else []
    lines += [f"  {path} stayed behind" for path in left_out]
    lines += [f"  unknown: {fact} ({why})" for fact, why in facts.unknown.items()]
    lines += [f"  to be known: {finding.path} {finding.message}" for finding in report.findings]
    lines += remarks(version)
    render.show(version, output, lambda: lines)


@contextlib.contextmanager
def _growing(folder: Path, label: str, source: Path) -> Iterator[None]:
    """A bar of how much lies in the folder already, of what the source is: weights are as large in either form."""

    def laid(root: Path) -> int:
        return sum(file.stat().st_size for file in (root, *root.rglob("*")) if file.is_file())

    def watch() -> None:
        seen = 0
        while not done.wait(LOOK_EVERY_S):
            with contextlib.suppress(FileNotFoundError):  # a draft gets its name between two looks
                now = laid(folder)
                advance(now - seen)
                seen = now

    if not sys.stderr.isatty():
        yield
        return
    done, watching = threading.Event(), threading.Thread(target=watch, daemon=True)
    with render.progress(label, laid(source)) as advance:
        watching.start()
        try:
            yield
        finally:
            done.set()
            watching.join()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _framework(files: Sequence[model_tools.Looked]) -> str:
    """What the files say; "" when they do not."""
    formats, names = {file.format for file in files}, {Path(file.path).name for file in files}
    if "config.json" in names and Format.SAFETENSORS in formats:
        return "transformers" if "tokenizer_config.json" in names or "tokenizer.json" in names else "pytorch"
    found = {
        Format.GGUF: "llama.cpp",
        Format.ONNX: "onnx",
        Format.TFLITE: "tflite",
        Format.KERAS: "keras",
        Format.HDF5: "keras",
        Format.COREML: "coreml",
        Format.MSGPACK: "flax",
    }
    return next((framework for kind, framework in found.items() if kind in formats), "")


def _facts(stated: dict[str, object]) -> Facts:
    facts = facts_of({name: value for name, value in stated.items() if name != "unknown"})
    unknown = {}
    words = stated["unknown"]
    assert isinstance(words, Sequence)
    for word in words:
        fact, equals, why = str(word).partition("=")
        if not (equals and why.strip()) or fact not in MAY_BE_UNKNOWN:
            raise click.UsageError(f"--unknown takes FACT=WHY with one of {', '.join(MAY_BE_UNKNOWN)}, not {word!r}.")
        unknown[fact] = why.strip()
    return replace(facts, unknown=unknown)


def _taken_over(facts: Facts, known: dict[str, Any]) -> Facts:
    """The facts with those that the source states where the flags say nothing; what is known is not unknown."""
    if "data" in known:
        known = {**known, "data": tuple(DataFact(name=name, sha256=sha256) for name, sha256 in known["data"])}
    taken = {name: value for name, value in known.items() if not getattr(facts, name)}
    for name, value in taken.items():
        said = f"{name.replace('_', ' ')} as the source states it: {value}"
        render.say(render.clean(said))
    unknown = {name: why for name, why in facts.unknown.items() if name not in taken}
    return replace(facts, **taken, unknown=unknown)


def _ask(facts: Facts, source: str) -> Facts:
    """Asks for each missing fact on a terminal, again after an answer that can't be; refuses with all elsewhere."""
    missing = missing_facts(facts)
    refused = misstated(facts)
    if refused or (missing and not sys.stdin.isatty()):
        raise Refusal([*map(_refused, missing), *refused])
    for fact in missing:
        while not (answered := _answer(facts, fact, source)):
            pass
        facts = answered
    return facts


def _answer(facts: Facts, fact: MissingFact, source: str) -> Facts | None:
    """The facts with one more; None, and why, for an answer that is none."""
    takes = fact.flag.partition(" ")[2]
    why = ", or nothing if nobody knows" if fact.name in MAY_BE_UNKNOWN else ""
    said = click.prompt(f"{fact.question} ({takes}{why})", default="", show_default=False, err=True).strip()
    try:
        answered = _answered(facts, fact, said, source)
        wrong = [*misstated(answered), *(each.refused() for each in missing_facts(answered, (fact.name,)))]
    except (click.UsageError, GroundError) as error:
        render.say(f"  {error.message}")
        return None
    if wrong:
        render.say(f"  {wrong[0]}" if said else "  this must be known")
        return None
    return answered


def _refused(fact: MissingFact) -> Refused:
    refused = fact.refused()
    if fact.name in MAY_BE_UNKNOWN:
        return replace(refused, hint=f"{refused.hint}, or --unknown '{fact.name}=why nobody knows'")
    return refused


def _answered(facts: Facts, fact: MissingFact, answer: str, source: str) -> Facts:
    if not answer and fact.name in MAY_BE_UNKNOWN:
        likely = f"{source} does not state it" if source.startswith(("hf:", "mlflow:")) else ""
        why = click.prompt("  then why does nobody know?", default=likely, show_default=bool(likely), err=True).strip()
        return replace(facts, unknown={**facts.unknown, fact.name: why})
    if fact.name == "data":
        return replace(facts, data=data_of([answer]))
    if fact.name == "metrics":
        return replace(facts, metrics=metrics_of([answer]))
    named: dict[str, Any] = {fact.name: answer}
    return replace(facts, **named)
