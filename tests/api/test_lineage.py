"""Lineage from outside: an unmodified OpenLineage client tells of its job, and everybody's door shows it apart."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport
from openlineage.client.uuid import generate_new_uuid

from groundplane.cli.root import ground
from groundplane.domain.dataset import DatasetFacts
from groundplane.domain.model import ManifestFile
from groundplane.identity import Role

STATED = DatasetFacts(owner="ana", license="CC-BY-4.0", classification="internal")
FILES = (ManifestFile(path="a.csv", sha256="9" * 64, size_bytes=1),)


def tell(served: Any, key: str, inputs: list[InputDataset], outputs: list[OutputDataset]) -> None:
    auth = ApiKeyTokenProvider({"api_key": key})
    client = OpenLineageClient(transport=HttpTransport(HttpConfig(url=served.url, auth=auth)))
    event = RunEvent(
        eventTime=datetime.now(UTC).isoformat(),
        eventType=RunState.COMPLETE,
        run=Run(runId=str(generate_new_uuid())),
        job=Job(namespace="airflow", name="etl.daily"),
        inputs=inputs,
        outputs=outputs,
        producer="https://example.com/etl",
    )
    client.emit(event)


def test_a_job_outside_is_seen_on_the_dataset_by_every_door(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = served.client.register_dataset(
        "heard", project="default", facts=STATED, location="s3://heard/v1", files=FILES
    )
    table = InputDataset(namespace="postgres://db:5432", name="sales.orders")
    tell(served, served.key(Role.MEMBER), [table], [OutputDataset(namespace="s3://heard", name="v1")])
    monkeypatch.setenv("GROUND_URL", served.url)
    monkeypatch.setenv("GROUND_KEY", served.admin_key)

    def shown(*words: str) -> Any:
        done = CliRunner().invoke(ground, [*words, "-o", "json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    view = shown("lineage", "show", f"dataset:{corpus.id}")
    assert [(each["parent"], each["child"]) for each in view["outside"]] == [
        ("outside:postgres://db:5432/sales.orders", f"dataset:{corpus.id}")
    ]
    (event,) = shown("lineage", "events")
    assert (event["job"], event["state"]) == ("airflow/etl.daily", "COMPLETE")
    assert shown("lineage", "status")["receiver"] == ""
    metrics = served.raw("GET", "/metrics").text
    assert 'ground_lineage_heard{project="default"} 1.0' in metrics
    trail = served.client.audit_events(object_kind="lineage")
    assert [each.action for each in trail] == ["lineage.receive"]


def test_bad_events_and_keys_that_may_not_are_refused(served: Any, tmp_path: Path) -> None:
    assert served.raw("POST", "/api/v1/lineage", content=b"{").status_code == 422
    assert served.raw("POST", "/api/v1/lineage", json=[]).status_code == 422
    big = {"producer": "x" * 2**20}
    assert served.raw("POST", "/api/v1/lineage", json=big).status_code == 413
    assert served.raw("POST", "/api/v1/lineage", json={}, key=served.key(Role.VIEWER)).status_code == 403
    assert served.raw("POST", "/api/v1/lineage", json={}, key="").status_code == 401
    assert served.raw("GET", "/v1/lineage/nodes/run:x").status_code == 422
    assert served.raw("GET", "/v1/lineage/nodes/model:none@1").status_code == 404
