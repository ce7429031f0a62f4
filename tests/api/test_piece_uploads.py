"""Large files sent from elsewhere: only new pieces travel, a broken push goes on, nobody learns of others' pieces."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from tests.api.conftest import Served, control_plane

from groundplane.adapters.artifacts.bucket import BucketObjects
from groundplane.client import artifacts as sdk
from groundplane.client.sending import pieces_of
from groundplane.domain.packs import Piece, pack_pieces
from groundplane.errors import InvalidInput, Unavailable
from groundplane.identity import Role

MIB = 2**20


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A client on another machine; the bytes of each bundle that it sends."""
    counted: list[int] = []
    bundles = sdk.bundles

    def counting(*words: Any) -> Any:
        for bundle, size_bytes in bundles(*words):
            counted.append(size_bytes)
            yield bundle, size_bytes

    monkeypatch.setattr(sdk, "_name_sources", lambda folder, files: False)
    monkeypatch.setattr(sdk, "bundles", counting)
    return counted


def weights(place: Path, seed: object) -> Path:
    place.write_bytes(random.Random(str(seed)).randbytes(2 * MIB + 4321))
    return place


def test_of_a_changed_file_only_the_changed_piece_travels(served: Served, tmp_path: Path, sent: list[int]) -> None:
    source = weights(tmp_path / "w.bin", tmp_path)
    progress: list[int] = []
    served.client.push(source, name="large", project="default", progress=progress.append)
    assert sum(sent) == sum(progress) == 2 * MIB + 4321
    sent.clear()
    data = bytearray(source.read_bytes())
    data[MIB + 5] ^= 1
    source.write_bytes(data)
    artifact = served.client.push(source, name="large", project="default")
    assert sum(sent) == MIB
    served.client.pull(artifact.id, tmp_path / "out")
    assert (tmp_path / "out" / "w.bin").read_bytes() == data
    assert served.client.verify_artifact(artifact.id).ok


def test_a_push_that_broke_off_sends_only_the_rest(
    served: Served, tmp_path: Path, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = weights(tmp_path / "w.bin", tmp_path)
    upload: list[str] = []
    bundles = sdk.bundles
    monkeypatch.setattr("groundplane.client.sending.BUNDLE_BYTES", MIB)

    def breaking(*words: Any) -> Any:
        for number, each in enumerate(bundles(*words)):
            if number == 2:
                raise Unavailable("the line is cut")
            yield each

    monkeypatch.setattr(sdk, "bundles", breaking)
    with pytest.raises(Unavailable):
        served.client.push(source, name="cut", project="default", began=upload.append)
    monkeypatch.setattr(sdk, "bundles", bundles)
    sent.clear()
    artifact = served.client.push(source, name="cut", project="default", resume=upload[0])
    assert sum(sent) == 4321
    assert artifact.files[0].sha256 == hashlib.sha256(source.read_bytes()).hexdigest()


def test_who_does_not_see_a_file_learns_nothing_of_its_pieces_and_can_not_have_them(
    served: Served, tmp_path: Path, sent: list[int]
) -> None:
    source = weights(tmp_path / "secret.bin", tmp_path)
    served.client.push(source, name="secret", project="default")
    sha256, pieces = pieces_of(source)
    served.client.create_project(name="guessers", owner="bo", cost_center="cc-4")
    key = served.key(Role.MEMBER, "guessers")
    upload = served.raw("POST", "/v1/uploads", key=key).json()["id"]
    listed = pack_pieces(pieces)
    asked = served.raw("POST", f"/v1/piece-uploads/{upload}/missing", key=key, content=listed).json()
    assert asked == {"missing": list(range(len(pieces)))}
    query = {"path": "w", "sha256": sha256, "size_bytes": source.stat().st_size}
    made = served.raw("POST", f"/v1/piece-uploads/{upload}/files", key=key, content=listed, params=query)
    assert (made.status_code, "3 of 3 pieces" in made.text) == (422, True)
    other = served.raw("PUT", f"/v1/piece-uploads/{upload}/bundles/{'0' * 32}", content=b"\0\0\0\1a")
    assert other.status_code == 404, "the upload is another key's"


def test_bytes_that_are_not_what_they_are_called_become_no_file(served: Served) -> None:
    upload = served.raw("POST", "/v1/uploads").json()["id"]
    base = f"/v1/piece-uploads/{upload}"
    bundle = served.raw("POST", f"{base}/bundles").json()
    assert bundle["address"] == "", "a folder has no address to put bytes at"
    for bad in (b"\0\0\0\2a", b"\0\0\0\0", b"\xff\xff\xff\xff" + b"a"):
        assert served.raw("PUT", f"{base}/bundles/{bundle['name']}", content=bad).status_code == 422
    assert served.raw("PUT", f"{base}/bundles/{bundle['name']}", content=b"").status_code == 404
    assert served.raw("PUT", f"{base}/bundles/x", content=b"\0\0\0\1a").status_code == 422
    assert served.raw("PUT", f"{base}/bundles/{bundle['name']}", content=b"\0\0\0\1a").status_code == 204
    listed = pack_pieces([Piece(blake3(b"a").digest(), 1)])
    query = {"path": "w", "sha256": "0" * 64, "size_bytes": 1}
    wrong = served.raw("POST", f"{base}/files", content=listed, params=query)
    assert (wrong.status_code, "came together as" in wrong.text) == (422, True)
    assert served.raw("GET", f"/v1/uploads/{upload}").json()["files"] == []
    assert served.raw("POST", f"{base}/missing", content=b"12345").status_code == 422
    assert served.raw("POST", f"{base}/missing", content=pack_pieces([Piece(bytes(32), 2**30)])).status_code == 422
    viewer = served.key(Role.VIEWER)
    assert served.raw("POST", f"{base}/missing", content=listed, key=viewer).status_code == 403


def test_with_a_bucket_the_bytes_pass_the_control_plane_by(
    bucket: str, tmp_path: Path, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[bool] = []
    put_at = sdk.put_at

    def noting(address: str, bundle: bytes) -> bool:
        put.append(put_at(address, bundle))
        return put[-1]

    monkeypatch.setattr(sdk, "put_at", noting)
    source = weights(tmp_path / "w.bin", tmp_path)
    with control_plane(tmp_path / "ground", store_url=bucket) as plane:
        assert 'ground_store_bytes{part="stored"}' in plane.raw("GET", "/metrics").text
        assert 'ground_store_bytes{part="free"}' not in plane.raw("GET", "/metrics").text
        artifact = plane.client.push(source, name="landed", project="default")
        assert (put, sum(sent)) == ([True], source.stat().st_size)
        assert plane.client.pieces(artifact.id, "w.bin").addresses, "it can be read from the bucket, too"
        plane.client.pull(artifact.id, tmp_path / "out")
        assert (tmp_path / "out" / "w.bin").read_bytes() == source.read_bytes()
        # A client that can't reach the bucket sends through the API.
        monkeypatch.setattr(sdk, "put_at", lambda address, bundle: False)
        other = weights(tmp_path / "v.bin", "other")
        made = plane.client.push(other, name="landed", project="default")
        assert plane.client.verify_artifact(made.id).ok
    assert BucketObjects(bucket).sweep_landing(-1) == 0, "nothing is left where bundles land"


def test_a_cold_folder_beside_a_bucket_is_refused_at_the_start(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidInput, match="GROUND_STORE_COLD=/cold is a second folder"),
        control_plane(tmp_path / "ground", store_url="s3://anything/here", store_cold="/cold"),
    ):
        pass
