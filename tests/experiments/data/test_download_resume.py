"""Downloads that break and go on, from a server that drops, truncates, lies and forgets."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.base.errors import DataError
from experiments.data.checksum import Checksum
from experiments.data.download import download

BODY = bytes(range(251)) * 9000
SHA = Checksum("sha256", hashlib.sha256(BODY).hexdigest())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


@pytest.fixture
def part(target: Path) -> Path:
    return target.with_name(".file.bin.part")


def files(target: Path) -> list[str]:
    return sorted(p.name for p in target.parent.iterdir())


@pytest.mark.parametrize("drop", ["end", "reset"])
def test_one_call_goes_on_where_it_broke_however_often(server, target: Path, drop: str) -> None:
    server.bodies["/f"], server.cut["/f"] = BODY, 600_000
    server.ranges.add("/f")
    if drop == "reset":
        server.reset.add("/f")
    download([f"{server.url}/f"], target, SHA, attempts=2, pause=0)
    assert target.read_bytes() == BODY
    assert files(target) == ["file.bin"]
    starts = [0 if r is None else int(r[6:-1]) for r in server.asked]
    # 2.3 MB in pieces of 0.6 MB: more requests than attempts, since each of them got on.
    assert starts == [0, 600_000, 1_200_000, 1_800_000]


def test_a_later_call_goes_on(server, target: Path, part: Path) -> None:
    server.bodies["/f"], server.cut["/f"] = BODY, 700_000
    server.ranges.add("/f")
    with pytest.raises(DataError, match=r"700000 bytes are kept, the same command goes on"):
        download([f"{server.url}/f"], target, SHA, attempts=1)
    assert part.stat().st_size == 700_000
    del server.cut["/f"]
    download([f"{server.url}/f"], target, SHA)
    assert server.asked == [None, "bytes=700000-"]
    assert target.read_bytes() == BODY
    assert files(target) == ["file.bin"]


def test_an_interrupted_call_leaves_its_bytes(server, target: Path, part: Path) -> None:
    server.bodies["/f"] = BODY

    def interrupt(received: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download([f"{server.url}/f"], target, SHA, progress=interrupt)
    assert 0 < part.stat().st_size < len(BODY)
    assert not target.exists()


def test_a_server_that_ignores_range(server, target: Path, part: Path) -> None:
    server.bodies["/f"] = BODY
    part.write_bytes(BODY[:1000])
    download([f"{server.url}/f"], target, SHA)
    assert server.asked == ["bytes=1000-"]
    assert target.read_bytes() == BODY


def test_a_server_that_sends_another_range(server, target: Path, part: Path) -> None:
    server.bodies["/f"] = BODY
    server.ranges.add("/f")
    server.wrong_range["/f"] = f"bytes 5-{len(BODY) - 1}/{len(BODY)}"
    part.write_bytes(BODY[:1000])
    download([f"{server.url}/f"], target, SHA, pause=0)
    assert server.asked == ["bytes=1000-", None]
    assert target.read_bytes() == BODY


def test_a_part_of_another_version_is_found_out_and_forgotten(
    server, target: Path, part: Path
) -> None:
    server.bodies["/f"] = BODY
    server.ranges.add("/f")
    part.write_bytes(b"old" * 1000)
    download([f"{server.url}/f"], target, SHA, pause=0)
    assert server.asked == ["bytes=3000-", None]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("content", ["complete", "too long"])
def test_a_part_with_nothing_left_to_ask_for(
    server, target: Path, part: Path, content: str
) -> None:
    server.bodies["/f"] = BODY
    server.ranges.add("/f")
    part.write_bytes(BODY if content == "complete" else BODY + b"more")
    download([f"{server.url}/f"], target, SHA, pause=0)
    assert server.hits["/f"] == (1 if content == "complete" else 2)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("etag", ['"one"', None])
def test_without_a_checksum_only_the_same_version_is_continued(
    server, target: Path, part: Path, etag: str | None
) -> None:
    part.write_bytes(b"from an earlier call, of whatever version")
    server.bodies["/f"], server.cut["/f"] = BODY, len(BODY) // 2 + 1
    server.ranges.add("/f")
    if etag is None:
        with pytest.raises(DataError, match="ended after"):
            download([f"{server.url}/f"], target, None, attempts=2, pause=0)
        assert server.asked == [None, None]
        assert files(target) == []
    else:
        server.etags["/f"] = etag
        download([f"{server.url}/f"], target, None, attempts=2, pause=0)
        assert server.asked == [None, f"bytes={len(BODY) // 2 + 1}-"]
        assert target.read_bytes() == BODY


def test_a_file_that_changes_between_two_attempts(server, target: Path) -> None:
    server.bodies["/f"], server.cut["/f"] = BODY, 1_500_000
    server.ranges.add("/f")
    server.etags["/f"] = '"one"'
    new = b"new" * 100_000

    def change(received: int, total: int | None) -> None:
        server.bodies["/f"], server.etags["/f"] = new, '"two"'

    download([f"{server.url}/f"], target, None, pause=0, progress=change)
    assert target.read_bytes() == new


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (str(len(BODY) + 10), "ended after"),
        (str(len(BODY) - 10), "wrong sha256 checksum"),
        ("many", "announces a length of 'many'"),
        ("-5", "announces a length of '-5'"),
    ],
)
def test_a_server_that_lies_about_the_length(
    server, target: Path, length: str, message: str
) -> None:
    server.bodies["/f"], server.lengths["/f"] = BODY, length
    with pytest.raises(DataError, match=message):
        download([f"{server.url}/f"], target, SHA, attempts=2, pause=0)
    assert not target.exists()


def test_a_truncated_body_of_unannounced_length(server, target: Path) -> None:
    server.bodies["/f"], server.lengths["/f"] = BODY, None
    download([f"{server.url}/f"], target, SHA)
    assert target.read_bytes() == BODY
    server.cut["/f"] = 1_000_000
    with pytest.raises(DataError, match="wrong sha256 checksum"):
        download([f"{server.url}/f"], target, SHA, attempts=2, pause=0)
    assert target.read_bytes() == BODY  # the old file stays
    assert files(target) == ["file.bin"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_far_too_large(server, target: Path, announced: bool) -> None:
    server.bodies["/f"] = BODY
    if not announced:
        server.lengths["/f"] = None
    with pytest.raises(DataError, match=rf"(announces {len(BODY)} bytes, )?more than 1000"):
        download([f"{server.url}/f"], target, SHA, largest=1000, pause=0)
    assert files(target) == []


def test_too_many_requests_is_no_final_answer(server, target: Path) -> None:
    server.bodies["/f"], server.failures["/f"] = BODY, [429, 408]
    download([f"{server.url}/f"], target, SHA, pause=0)
    assert server.hits["/f"] == 3


def test_the_second_of_two_processes_waits_for_the_first(server, target: Path) -> None:
    server.bodies["/f"] = BODY
    server.hold["/f"] = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(download, [f"{server.url}/f"], target, SHA) for _ in range(2)]
        threading.Timer(0.2, server.hold["/f"].set).start()
        assert [future.result(20) for future in both] == [target, target]
    assert server.hits["/f"] == 1
    assert files(target) == ["file.bin"]


def test_progress_counts_to_the_end(server, target: Path) -> None:
    server.bodies["/f"], server.cut["/f"] = BODY, 1_300_000
    server.ranges.add("/f")
    seen: list[tuple[int, int | None]] = []
    download([f"{server.url}/f"], target, SHA, pause=0, progress=lambda *args: seen.append(args))
    counts = [received for received, _ in seen]
    assert counts == sorted(counts)
    assert counts[-1] == len(BODY)
    assert {total for _, total in seen} == {len(BODY)}
