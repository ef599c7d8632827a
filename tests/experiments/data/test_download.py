"""Downloads from a server on this machine: whole and right, or nothing and one message."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
from pathlib import Path

import pytest

from experiments.base.errors import DataError
from experiments.data import download as module
from experiments.data.checksum import Checksum, check, digest, verified_bytes
from experiments.data.download import download

BODY = bytes(range(256)) * 9000  # more than two chunks
MD5 = Checksum("md5", hashlib.md5(BODY, usedforsecurity=False).hexdigest())
SHA = Checksum("sha256", hashlib.sha256(BODY).hexdigest())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file.bin"


def leftovers(target: Path) -> list[str]:
    return sorted(p.name for p in target.parent.iterdir()) if target.parent.exists() else []


@pytest.mark.parametrize("checksum", [MD5, SHA, None])
def test_the_file_arrives(server, target: Path, checksum: Checksum | None) -> None:
    server.bodies["/f"] = BODY
    assert download([f"{server.url}/f"], target, checksum) == target
    assert target.read_bytes() == BODY
    assert leftovers(target) == ["file.bin"]


def test_a_truncated_body_is_tried_again_and_never_taken_for_the_file(server, target: Path) -> None:
    server.bodies["/f"], server.cut["/f"] = BODY, len(BODY) // 2
    with pytest.raises(DataError, match=rf"file\.bin .*ended after \d+ of {len(BODY)} bytes"):
        download([f"{server.url}/f"], target, MD5, attempts=3, pause=0)
    assert server.hits["/f"] == 3
    assert leftovers(target) == [".file.bin.part"]
    with pytest.raises(DataError, match="ended after"):
        download([f"{server.url}/f"], target, None, attempts=1)
    assert leftovers(target) == []  # without a checksum it could not be continued safely


def test_a_wrong_checksum_is_final_and_keeps_the_old_file(server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    server.bodies["/f"] = BODY[:-1] + b"!"
    with pytest.raises(DataError, match=f"wrong sha256 checksum .*expected {SHA.value}"):
        download([f"{server.url}/f"], target, SHA, pause=0)
    assert server.hits["/f"] == 1
    assert target.read_bytes() == b"old"
    assert leftovers(target) == ["file.bin"]


def test_a_server_error_passes(server, target: Path) -> None:
    server.bodies["/f"], server.failures["/f"] = BODY, [503, 500]
    download([f"{server.url}/f"], target, SHA, pause=0)
    assert server.hits["/f"] == 3
    assert target.read_bytes() == BODY


def test_a_missing_page_leads_to_the_next_mirror_at_once(server, target: Path) -> None:
    server.bodies["/f"] = BODY
    download([f"{server.url}/gone", f"{server.url}/f"], target, SHA, pause=0)
    assert (server.hits["/gone"], server.hits["/f"]) == (1, 1)


def test_no_network_says_where_to_put_the_file(target: Path) -> None:
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
        with pytest.raises(DataError, match="check the network, or put the file there") as caught:
            download([url], target, SHA, attempts=2, pause=0)
    assert str(target) in str(caught.value)


def test_a_full_disk_is_not_blamed_on_the_network(server, target: Path, monkeypatch) -> None:
    server.bodies["/f"] = BODY
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if os.fstat(descriptor).st_size >= module.CHUNK:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr("experiments.data.partial.os.write", full)
    with pytest.raises(DataError, match=r"cannot write .*No space left on device; free space"):
        download([f"{server.url}/f"], target, SHA, pause=0)
    assert server.hits["/f"] == 1
    assert leftovers(target) == [".file.bin.part"]
    monkeypatch.setattr("experiments.data.partial.os.write", write)
    server.ranges.add("/f")
    download([f"{server.url}/f"], target, SHA)  # there is space again
    assert int(server.asked[-1][6:-1]) >= module.CHUNK
    assert target.read_bytes() == BODY


def test_a_disk_that_is_too_small_is_refused_before_it_is_full(
    server, target: Path, monkeypatch
) -> None:
    server.bodies["/f"] = BODY
    usage = shutil.disk_usage(target.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match=rf"\({len(BODY)} bytes needed, 1000 free\); free space"):
        download([f"{server.url}/f"], target, SHA, pause=0)
    assert leftovers(target) == []


def test_a_folder_that_cannot_be_made(server, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    server.bodies["/f"] = BODY
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        download([f"{server.url}/f"], tmp_path / "closed" / "f", SHA, pause=0)


def test_a_data_folder_that_is_a_file(server, tmp_path: Path) -> None:
    server.bodies["/f"] = BODY
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot write .*data.sub.f: .*choose another data_dir"):
        download([f"{server.url}/f"], tmp_path / "data" / "sub" / "f", SHA, pause=0)
    assert not server.hits


def test_only_web_addresses(tmp_path: Path, target: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(BODY)
    with pytest.raises(DataError, match="only http and https"):
        download([secret.as_uri()], target, SHA)
    assert not target.exists()


def test_check_compares_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(BODY)
    check(path, SHA)
    assert digest(path, "md5") == MD5.value
    path.write_bytes(BODY[:100])
    with pytest.raises(DataError, match=r"f: wrong md5 checksum .*delete it and get it again"):
        check(path, MD5)
    with pytest.raises(DataError, match="gone: cannot be read"):
        check(tmp_path / "gone", MD5)


def test_verified_bytes_are_the_content_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(BODY)
    assert verified_bytes(path, SHA) == BODY
    with pytest.raises(DataError, match="wrong md5 checksum"):
        verified_bytes(path, MD5._replace(value="0" * 32))
    with pytest.raises(DataError, match="cannot be read"):
        verified_bytes(tmp_path, MD5)
