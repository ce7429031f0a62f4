"""The write-ahead log: what was answered is there once, whatever dies in between."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import msgspec
import pytest
from tests.gateway.harness import key, route

from groundplane.adapters.usage_log import FolderUsageLog
from groundplane.domain.serving.snapshot import SnapshotKey, Target
from groundplane.domain.serving.usage import Usage
from groundplane.domain.serving.usage_records import HEADER, Reserved, Settled, read_frames
from groundplane.domain.spec import TokenPrice
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput
from groundplane.gateway.records import constant_members, decimal_s, reserved_members, settled_members
from groundplane.gateway.wal import LogUnavailable, WriteAheadLog, adopt_abandoned


def opened(folder: Path, gateway_id: str = "gw", **more: int) -> WriteAheadLog:
    log = WriteAheadLog(folder, gateway_id, **{"free_min_bytes": 0, **more})
    log.open()
    return log


KEY = key()
TARGET = route("tiny", "http://127.0.0.1:1").targets[0]
CONSTANT = constant_members(KEY, "tiny", TARGET)


def reserve(log: WriteAheadLog, name: str) -> None:
    log.reserved(name.encode(), reserved_members(name.encode(), CONSTANT, 9, 9, b"100.0"))


def settle(log: WriteAheadLog, name: str, amount: int = 17, started_at: float = 100.0) -> None:
    times = (1_000, 2_000, b"%.1f" % started_at)
    members = settled_members(name.encode(), CONSTANT, 200, Usage(7, 5), amount, times)
    log.settled(name.encode(), members, "vision", amount)


def answer(log: WriteAheadLog, *names: str) -> None:
    for name in names:
        reserve(log, name)
        settle(log, name)


def abandon(log: WriteAheadLog) -> None:
    """What `kill -9` leaves: files as they are, the lock gone."""
    os.close(log._fd)
    os.close(log._lock_fd)


async def names(reader: FolderUsageLog, limit: int = 1000) -> list[str]:
    return [record.id for record in await reader.read(limit)]


async def test_settled_requests_are_read_in_order_until_acknowledged(tmp_path: Path) -> None:
    log, reader = opened(tmp_path), FolderUsageLog(tmp_path)
    answer(log, "a", "b", "c")
    assert await names(reader, 2) == ["a", "b"]
    assert await names(reader, 2) == ["a", "b"], "reading again returns the same"
    await reader.acknowledge(1)
    assert await names(reader) == ["b", "c"]
    assert await names(FolderUsageLog(tmp_path)) == ["b", "c"], "a restarted reader goes on from the cursor"
    await reader.acknowledge(2)
    answer(log, "d")
    assert await names(reader) == ["d"]
    assert (await FolderUsageLog(tmp_path).ingested())["gw"] == 7
    log.close()


async def test_acknowledging_more_than_was_read_is_a_mistake(tmp_path: Path) -> None:
    reader = FolderUsageLog(tmp_path)
    assert await reader.read(10) == [] and await reader.ingested() == {}
    with pytest.raises(ValueError, match="1 records are acknowledged, 0 were read"):
        await reader.acknowledge(1)


async def test_several_gateways_are_read_oldest_first(tmp_path: Path) -> None:
    one, two, reader = opened(tmp_path, "gw-1"), opened(tmp_path, "gw-2"), FolderUsageLog(tmp_path)
    settle(one, "a", started_at=1)
    settle(two, "b", started_at=2)
    settle(one, "c", started_at=3)
    settle(two, "d", started_at=0)  # began first, finished last: its own log's order holds
    assert await names(reader) == ["a", "b", "d", "c"]
    await reader.acknowledge(3)
    assert await names(reader) == ["c"]
    assert await reader.ingested() == {"gw-1": 2, "gw-2": 3}
    one.close()
    two.close()


async def test_a_request_that_died_unsettled_is_settled_as_estimated_once(tmp_path: Path) -> None:
    log = opened(tmp_path)
    answer(log, "a")
    reserve(log, "cut")
    abandon(log)
    again = WriteAheadLog(tmp_path, "gw", free_min_bytes=0)
    recovered = again.open()
    assert recovered.orphans == 1
    assert [(one.project, one.microusd) for one in recovered.settled] == [("vision", 17), ("vision", 9)]
    abandon(again)
    third = opened(tmp_path)
    first, cut = await FolderUsageLog(tmp_path).read(10)
    assert (first.id, cut.id) == ("a", "cut")
    assert (cut.estimated, cut.prompt_tokens, cut.completion_tokens, cut.amount_microusd) == (True, 9, 0, 9)
    third.close()


async def test_sequence_numbers_grow_over_restarts(tmp_path: Path) -> None:
    seen = []
    for name in ("a", "b", "c"):
        log = opened(tmp_path)
        answer(log, name)
        seen.append(log.seq)
        abandon(log)
    assert seen == sorted(set(seen))
    assert await names(FolderUsageLog(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("cut_bytes", [1, 7, 8, 9, 100])
async def test_a_torn_tail_is_ignored(tmp_path: Path, cut_bytes: int, cut: bool) -> None:
    log = opened(tmp_path)
    answer(log, "a", "b")
    abandon(log)
    segment = tmp_path / "gw-00000001.log"
    data = segment.read_bytes()
    end = read_frames(data).end
    segment.write_bytes(data[: end - cut_bytes] + (b"" if cut else bytes(len(data) - end + cut_bytes)))
    assert await names(FolderUsageLog(tmp_path)) == ["a"]
    again = opened(tmp_path)
    answer(again, "c")
    # b was reserved and its settlement is torn: it never got its answer's end, and is settled as estimated.
    assert await names(FolderUsageLog(tmp_path)) == ["a", "b", "c"]
    again.close()


async def test_a_writer_ended_in_the_middle_of_a_record_leaves_a_torn_tail(tmp_path: Path) -> None:
    """The text is copied before its header, in pieces whose order is the processor's."""
    log = opened(tmp_path)
    answer(log, "a", "b")
    abandon(log)
    segment = tmp_path / "gw-00000001.log"
    whole = segment.read_bytes()
    end = read_frames(whole).end
    begin = whole.rindex(b"S{", 0, end) - HEADER.size
    header, text = whole[begin : begin + HEADER.size], whole[begin + HEADER.size : end]
    states = [bytes(HEADER.size) + text[:count] for count in range(0, len(text) + 1, 16)]
    states += [bytes(HEADER.size) + bytes(count) + text[count:] for count in range(0, len(text), 64)]
    states += [header[:count] + bytes(HEADER.size - count) + text for count in range(HEADER.size)]
    for number, state in enumerate(states):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / segment.name).write_bytes(whole[:begin] + state.ljust(len(whole) - begin, b"\0"))
        assert await names(FolderUsageLog(folder)) == ["a"], state
        again = WriteAheadLog(folder, "gw", segment_max_bytes=2_000, free_min_bytes=0)
        assert again.open().orphans == 1
        again.close()


@pytest.mark.parametrize("damaged", [bytes(8), b"\0", b"\xff\xff"], ids=["no header", "a short one", "a long one"])
async def test_a_header_damaged_before_other_records_is_named(tmp_path: Path, damaged: bytes) -> None:
    log = opened(tmp_path)
    answer(log, "a", "b")
    log.close()
    segment = tmp_path / "gw-00000001.log"
    data = segment.read_bytes()
    begin = data.index(b"S{") - HEADER.size
    segment.write_bytes(data[:begin] + damaged + data[begin + len(damaged) :])
    with pytest.raises(IntegrityFailure, match=rf"gw-00000001\.log is damaged at byte {begin}"):
        await FolderUsageLog(tmp_path).read(10)
    with pytest.raises(IntegrityFailure, match=rf"gw-00000001\.log is damaged at byte {begin}"):
        opened(tmp_path)


async def test_zeros_after_a_power_cut_are_a_torn_tail(tmp_path: Path) -> None:
    log = opened(tmp_path)
    answer(log, "a")
    abandon(log)
    with (tmp_path / "gw-00000001.log").open("ab") as file:
        file.write(bytes(4096))
    assert await names(FolderUsageLog(tmp_path)) == ["a"]
    opened(tmp_path).close()


async def test_a_record_still_being_written_is_read_later(tmp_path: Path) -> None:
    log, reader = opened(tmp_path), FolderUsageLog(tmp_path)
    answer(log, "a", "b")
    segment = tmp_path / "gw-00000001.log"
    end = read_frames(segment.read_bytes()).end
    with segment.open("r+b") as file:
        file.seek(end - 5)
        last = file.read(5)
        file.seek(end - 5)
        file.write(bytes(5))
        file.flush()
        assert await names(reader) == ["a"]
        file.seek(end - 5)
        file.write(last)
    assert await names(reader) == ["a", "b"]
    log.close()


async def test_damage_in_the_middle_is_named_not_skipped(tmp_path: Path) -> None:
    log = opened(tmp_path)
    answer(log, "a", "b")
    abandon(log)
    segment = tmp_path / "gw-00000001.log"
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(bytes(data))
    with pytest.raises(IntegrityFailure, match=r"gw-00000001\.log is damaged at byte"):
        await FolderUsageLog(tmp_path).read(10)
    with pytest.raises(IntegrityFailure, match=r"gw-00000001\.log is damaged at byte"):
        opened(tmp_path)


async def test_segments_rotate_and_are_deleted_when_acknowledged(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_max_bytes=2_000)
    reader = FolderUsageLog(tmp_path, keep_s=0)
    reserve(log, "long")
    expected = [f"r{number}" for number in range(50)]
    answer(log, *expected)
    assert len(list(tmp_path.glob("*.log"))) > 5
    read: list[str] = []
    while batch := await names(reader, 7):
        read += batch
        await reader.acknowledge(len(batch))
    await reader.acknowledge(0)
    assert read == expected
    assert len(list(tmp_path.glob("*.log"))) == 1, "only the open segment is left"
    abandon(log)
    again = WriteAheadLog(tmp_path, "gw", free_min_bytes=0)
    assert again.open().orphans == 1, "a reservation survives the deletion of the segment it was made in"
    assert await names(reader) == ["long"]
    assert again.seq > log.seq
    again.close()


async def test_an_acknowledged_segment_stays_for_a_while(tmp_path: Path) -> None:
    log = opened(tmp_path, segment_max_bytes=2_000)
    reader = FolderUsageLog(tmp_path, keep_s=3600)
    answer(log, *(f"r{number}" for number in range(20)))
    before = len(list(tmp_path.glob("*.log")))
    await reader.acknowledge(len(await reader.read(100)))
    assert len(list(tmp_path.glob("*.log"))) == before
    log.close()


async def test_large_logs_are_read_in_pieces(tmp_path: Path) -> None:
    log = opened(tmp_path)
    answer(log, *(f"r{number}" for number in range(5_000)))
    reader, read = FolderUsageLog(tmp_path), []
    while batch := await names(reader, 999):
        read += batch
        await reader.acknowledge(len(batch))
    assert read == [f"r{number}" for number in range(5_000)]
    log.close()


async def test_a_damaged_cursor_is_named(tmp_path: Path) -> None:
    (tmp_path / "cursor.json").write_text("{")
    with pytest.raises(IntegrityFailure, match=r"cursor.json can't be read"):
        await FolderUsageLog(tmp_path).ingested()


def test_one_gateway_id_has_one_writer(tmp_path: Path) -> None:
    log = opened(tmp_path)
    with pytest.raises(Conflict, match="gateway id gw is in use"):
        opened(tmp_path)
    log.close()
    opened(tmp_path).close()


def test_a_gateway_id_is_safe_in_a_file_name(tmp_path: Path) -> None:
    for name in ("", "../x", "A", "x" * 50):
        with pytest.raises(InvalidInput):
            WriteAheadLog(tmp_path, name)


async def test_a_write_that_fails_refuses_requests_and_loses_no_settlement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path)
    answer(log, "a")
    reserve(log, "b")

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    settled: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        for number in range(1000):  # what is allocated already is used up
            settled = [*settled, f"f{number}"]
            try:
                answer(log, settled[-1])
            except LogUnavailable:
                break
        with pytest.raises(LogUnavailable):
            settle(log, "b")
    with pytest.raises(LogUnavailable):
        reserve(log, "c")
    log.check_space()
    assert log.trouble == ""
    answer(log, "d")
    told = await names(FolderUsageLog(tmp_path))
    assert sorted(told) == sorted(["a", "b", "d", *settled[:-1]]) or sorted(told) == sorted(["a", "b", "d", *settled])
    log.close()


def test_too_little_free_space_is_trouble_before_the_disk_is_full(tmp_path: Path) -> None:
    log = opened(tmp_path, free_min_bytes=2**60)
    log.check_space()
    assert "bytes free and needs" in log.trouble
    with pytest.raises(LogUnavailable):
        reserve(log, "a")
    log.close()


async def test_what_a_worker_left_that_nobody_starts_again_is_settled_once(tmp_path: Path) -> None:
    """Two ids take turns when a worker is replaced; with fewer workers, the first settles for the rest."""
    for name in ("gw-0r", "gw-1", "gw-3"):
        log = opened(tmp_path, name)
        reserve(log, f"cut-{name}")
        abandon(log)
    alive = opened(tmp_path, "gw-2")
    reserve(alive, "running")
    assert adopt_abandoned(tmp_path, "gw-0", 2) == ["gw-0r", "gw-3"]
    assert adopt_abandoned(tmp_path, "gw-0", 2) == []
    assert sorted(await names(FolderUsageLog(tmp_path))) == ["cut-gw-0r", "cut-gw-3"]
    assert adopt_abandoned(tmp_path, "bench", 2) == []
    alive.close()


async def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "gw-x.log", "cursor.json.bak", "-1.log"):
        (tmp_path / name).write_text("mine")
    log = opened(tmp_path)
    answer(log, "a")
    assert await names(FolderUsageLog(tmp_path)) == ["a"]
    log.close()
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir() if p.read_bytes() == b"mine"))


def test_records_put_together_as_text_are_what_their_types_say() -> None:
    odd = 'a "quoted" \\ name\n\u00fc'
    who = SnapshotKey(id=odd, secret_sha256="", project=odd, owner="", role="caller")
    price = TokenPrice(prompt_microusd_per_million=1, completion_microusd_per_million=1)
    target = Target(endpoint=odd, revision=3, base_url="", upstream_model="", price=price)
    constant = constant_members(who, odd, target)
    begun = b'{"seq":5,' + reserved_members(b"r1", constant, 7, 8, decimal_s(1_700_000_000_250_000_000))
    assert msgspec.json.decode(begun, type=Reserved, strict=True) == Reserved(
        seq=5,
        id="r1",
        key_id=odd,
        project=odd,
        model=odd,
        endpoint=odd,
        revision=3,
        prompt_tokens=7,
        if_cut_microusd=8,
        started_at=1_700_000_000.25,
    )
    for estimated, ttft_us in ((True, None), (False, 1500)):
        done = settled_members(b"r1", constant, 200, Usage(1, 2, 1, estimated), 9, (ttft_us, 2250, b"1700000000.5"))
        assert msgspec.json.decode(b'{"seq":6,' + done, type=Settled, strict=True) == Settled(
            seq=6,
            id="r1",
            key_id=odd,
            project=odd,
            model=odd,
            endpoint=odd,
            revision=3,
            status=200,
            prompt_tokens=1,
            completion_tokens=2,
            cached_tokens=1,
            amount_microusd=9,
            estimated=estimated,
            ttft_ms=None if ttft_us is None else 1.5,
            duration_ms=2.25,
            started_at=1_700_000_000.5,
        )
