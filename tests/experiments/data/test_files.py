"""Downloads from a server on this machine that drops, truncates, lies and forgets."""

from __future__ import annotations

import errno
import hashlib
import resource
import shutil
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from data_files import files_below, md5, put

from experiments.base.errors import DataError
from experiments.data import files as module
from experiments.data.files import Remote, check, digest, download, noting, read, read_text

BODY = bytes(range(251)) * 9000  # more than two chunks
MD5 = md5(BODY)
SHA = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file.bin"


@pytest.fixture
def part(target: Path) -> Path:
    """What an earlier call may have left."""
    target.parent.mkdir()
    return target.with_name(".file.bin.part")


def fetch(
    server, target: Path, checksum: str | None = SHA, paths: tuple[str, ...] = ("/f",), **more: Any
) -> None:
    """Download ``/f``, whose body is BODY unless the test says otherwise."""
    server.bodies.setdefault("/f", BODY)
    urls = tuple(f"{server.url}{path}" for path in paths)
    size = more.pop("size", None)
    download(Remote("file.bin", urls, checksum, size), target, instead="do this", **more)


def arrived(target: Path, content: bytes = BODY) -> bool:
    """Whether the file is there, whole, and nothing beside it."""
    return target.read_bytes() == content and files_below(target.parent) == ["file.bin"]


@pytest.mark.parametrize("checksum", [MD5, SHA, None])
def test_the_file_arrives(server, target, checksum):
    fetch(server, target, checksum)
    assert arrived(target)


@pytest.mark.parametrize("statuses", [[503, 500], [429, 408]])
def test_a_server_that_is_busy_is_asked_again(server, target, statuses):
    server.failures["/f"] = statuses
    fetch(server, target)
    assert server.hits["/f"] == 3
    assert arrived(target)


def test_a_missing_page_leads_to_the_next_mirror_at_once(server, target):
    fetch(server, target, paths=("/gone", "/f"))
    assert (server.hits["/gone"], server.hits["/f"]) == (1, 1)


def test_a_truncated_body_is_tried_again_and_never_taken_for_the_file(server, target):
    server.cut["/f"] = len(BODY) // 2
    with pytest.raises(DataError, match=rf"file\.bin .*ended after \d+ of {len(BODY)} bytes"):
        fetch(server, target)
    assert server.hits["/f"] == 3
    assert files_below(target.parent) == [".file.bin.part"]
    with pytest.raises(DataError, match="ended after"):
        fetch(server, target, None)
    assert files_below(target.parent) == []  # without a checksum it could not be continued safely


def test_a_wrong_checksum_is_final(server, target):
    server.bodies["/f"] = BODY[:-1] + b"!"
    with pytest.raises(DataError, match=rf"SHA256 hash .*expected {SHA} but got"):
        fetch(server, target)
    assert server.hits["/f"] == 1
    assert files_below(target.parent) == []


def test_no_network_says_what_to_do(target):
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        remote = Remote("file.bin", (f"http://127.0.0.1:{free.getsockname()[1]}/f",), SHA)
        with pytest.raises(DataError, match=r"check the network, or do this$"):
            download(remote, target, instead="do this")


def test_only_web_addresses(tmp_path, target):
    put(tmp_path, {"secret": BODY})
    remote = Remote("file.bin", ((tmp_path / "secret").as_uri(),), SHA)
    with pytest.raises(DataError, match="only http and https"):
        download(remote, target, instead="do this")
    assert not target.exists()


@pytest.mark.parametrize("drop", ["end", "reset"])
def test_one_call_goes_on_where_it_broke_however_often(server, target, drop):
    server.cut["/f"] = 400_000
    server.ranges.add("/f")
    if drop == "reset":
        server.reset.add("/f")
    seen = []

    def progress(received: int, total: int | None) -> None:
        server.read = received
        seen.append((received, total))

    fetch(server, target, progress=progress)
    assert arrived(target)
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY))
    starts = [0 if r is None else int(r[6:-1]) for r in server.asked]
    # 2.3 MB in pieces of 0.4 MB: more requests than attempts, since each of them got on.
    assert starts == list(range(0, len(BODY), 400_000))


def test_a_later_call_goes_on(server, target, part, monkeypatch):
    server.cut["/f"] = 700_000
    server.ranges.add("/f")
    with monkeypatch.context() as patch:
        patch.setattr(module, "ATTEMPTS", 1)
        with pytest.raises(DataError, match=r"700000 bytes are kept, the same command goes on"):
            fetch(server, target)
    assert part.stat().st_size == 700_000
    del server.cut["/f"]
    fetch(server, target)
    assert server.asked == [None, "bytes=700000-"]
    assert arrived(target)


def test_an_interrupted_call_leaves_its_bytes(server, target, part):
    with pytest.raises(KeyboardInterrupt):
        fetch(server, target, progress=Mock(side_effect=KeyboardInterrupt))
    assert 0 < part.stat().st_size < len(BODY)
    assert files_below(target.parent) == [part.name]


@pytest.mark.parametrize(
    ("here", "ranges", "sent", "asked"),
    [
        (BODY[:1000], False, None, ["bytes=1000-"]),  # the server ignores Range
        (BODY[:1000], True, f"bytes 5-{len(BODY) - 1}/{len(BODY)}", ["bytes=1000-", None]),
        (b"old" * 1000, True, None, ["bytes=3000-", None]),  # of another version
        (BODY, True, None, [f"bytes={len(BODY)}-"]),  # complete
        (BODY + b"more", True, None, [f"bytes={len(BODY) + 4}-", None]),
    ],
)
def test_a_part_that_is_there(server, target, part, here, ranges, sent, asked):
    part.write_bytes(here)
    server.ranges = {"/f"} if ranges else set()
    if sent is not None:
        server.wrong_range["/f"] = sent
    fetch(server, target)
    assert server.asked == asked
    assert arrived(target)


@pytest.mark.parametrize("etag", ['"one"', None])
def test_without_a_checksum_only_the_same_version_is_continued(server, target, part, etag):
    part.write_bytes(b"from an earlier call, of whatever version")
    server.cut["/f"] = len(BODY) // 2 + 1
    server.ranges.add("/f")
    if etag is None:
        with pytest.raises(DataError, match="ended after"):
            fetch(server, target, None)
        assert server.asked == [None, None, None]
        assert files_below(target.parent) == []
    else:
        server.etags["/f"] = etag
        fetch(server, target, None)
        assert server.asked == [None, f"bytes={len(BODY) // 2 + 1}-"]
        assert arrived(target)


def test_a_file_that_changes_between_two_attempts(server, target):
    server.bodies["/f"], server.cut["/f"] = BODY, 1_500_000
    server.ranges.add("/f")
    server.etags["/f"] = '"one"'
    new = b"new" * 100_000

    def change(received: int, total: int | None) -> None:
        server.bodies["/f"], server.etags["/f"] = new, '"two"'

    fetch(server, target, None, progress=change)
    assert arrived(target, new)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (str(len(BODY) + 10), "ended after"),
        (str(len(BODY) - 10), "does not match the known hash"),
        ("many", "announces a length of 'many'"),
        ("-5", "announces a length of '-5'"),
    ],
)
def test_a_server_that_lies_about_the_length(server, target, length, message):
    server.lengths["/f"] = length
    with pytest.raises(DataError, match=message):
        fetch(server, target)
    assert not target.exists()


def test_a_body_of_unannounced_length(server, target):
    server.lengths["/f"] = None
    fetch(server, target)
    assert arrived(target)
    target.unlink()
    server.cut["/f"] = 1_000_000
    with pytest.raises(DataError, match="does not match the known hash"):
        fetch(server, target)
    assert not target.exists()


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_far_too_large(server, target, monkeypatch, announced):
    monkeypatch.setattr(module, "SLACK", 0)
    if not announced:
        server.lengths["/f"] = None
    with pytest.raises(DataError, match=rf"(announces {len(BODY)} bytes, )?more than 1000"):
        fetch(server, target, size=500)
    assert files_below(target.parent) == []


def test_a_full_disk_is_not_blamed_on_the_network(server, target, part):
    server.ranges.add("/f")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*File too large; free space"):
            fetch(server, target, paths=("/f", "/f"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert server.hits["/f"] == 1
    assert part.stat().st_size == 1_000_000
    fetch(server, target)  # there is space again
    assert server.asked[-1] == "bytes=1000000-"
    assert arrived(target)


def test_a_link_in_place_of_the_part_is_not_followed(server, target, part):
    put(target.parent, {"victim": b"mine"})
    part.symlink_to("victim")
    with pytest.raises(DataError, match="cannot write"):
        fetch(server, target)
    assert (target.parent / "victim").read_bytes() == b"mine"


def test_a_disk_that_is_too_small_is_refused_before_it_is_full(server, target, monkeypatch):
    usage = shutil.disk_usage(target.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match=rf"\({len(BODY)} bytes needed, 1000 free\); free space"):
        fetch(server, target)
    assert files_below(target.parent) == []


def test_folders_that_cannot_be_written(server, tmp_path, monkeypatch):
    put(tmp_path, {"data": b"not a folder"})
    with pytest.raises(DataError, match=r"cannot write .*data.sub.f: .*choose another data_dir"):
        fetch(server, tmp_path / "data" / "sub" / "f")
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(Path, "mkdir", Mock(side_effect=denied))
    with pytest.raises(DataError, match="Permission denied"):
        fetch(server, tmp_path / "closed" / "f")
    assert not server.hits


def test_a_file_is_what_it_has_to_be_or_is_not_read(tmp_path):
    put(tmp_path, {"f": BODY, "cut": BODY[:100]})
    check(tmp_path / "f", SHA)
    assert read(tmp_path / "f", SHA) == read(tmp_path / "f") == BODY
    assert f"md5:{digest(tmp_path / 'f', 'md5')}" == MD5
    with noting() as noted:  # not what is known beforehand
        read(tmp_path / "f", SHA)
        check(tmp_path / "f", MD5)
        assert noted == {}
        read(tmp_path / "f")
    assert noted == {"f": SHA.removeprefix("sha256:")}
    for look in (check, read):
        with pytest.raises(DataError, match=r"cut: wrong md5 checksum .*delete it and get it agai"):
            look(tmp_path / "cut", MD5)
        for name in (".", "gone"):
            with pytest.raises(DataError, match="cannot be read"):
                look(tmp_path / name, MD5)
    with pytest.raises(DataError, match=r"f: not a text file \(byte 128 is not UTF-8\)"):
        read_text(tmp_path / "f")
