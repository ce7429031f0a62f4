"""What a staged source of a spec may be: which addresses, and which fields go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from groundplane.domain.spec import DataSource

SCHEMES = ("http://", "https://", "s3://", "artifact:", "model:")
KEPT = ("artifact:", "model:", "shards:")
"""Sources that lie in the installation's own store: the control plane brings them."""


def in_store(source: DataSource) -> str:
    """The kind of a source that lies in the installation's own store: `artifact`, `model`, `shards` (of a batch, by its
    run: no spec names them); "" for another."""
    return source.source.partition(":")[0] if source.source.startswith(KEPT) else ""


def faults(source: DataSource, secrets: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(field, what is wrong, the way forward) of one source of a spec."""
    if not source.path and not source.source and not source.dataset:
        yield "path", "is required", "write path: FILE to read it where it lies, or from: SOURCE to stage it"
    if source.path and source.source:
        yield "from", "and path can't both be given", "the job finds staged data in $GROUND_DATA_DIR"
    if source.url and source.source:
        yield "url", "and from can't both be given", "from: takes http and https addresses"
    if source.source and not source.source.startswith(("/", *SCHEMES)):
        yield "from", f"{source.source[:80]!r} is no source", f"a folder, or one of {', '.join(SCHEMES)}"
    for name in ("endpoint", "region"):
        if getattr(source, name) and not source.source.startswith("s3://"):
            yield name, "belongs to s3:// sources", "remove it"
    for name in ("secret", "manifest"):
        if getattr(source, name) and (not source.source or in_store(source)):
            yield name, "belongs to sources that are staged from outside", "remove it"
    if source.secret and source.secret not in secrets:
        yield "secret", f"{source.secret!r} is not in spec.secrets", f"add secrets: [{source.secret}]"
    if source.sha256 and source.manifest:
        yield "sha256", "and manifest can't both be given", "the manifest has a SHA-256 for each file"
