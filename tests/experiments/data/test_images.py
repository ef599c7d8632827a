"""MNIST, SVHN and CIFAR-10: files in the original formats made by the tests, and the real ones."""

from __future__ import annotations

import gzip
import importlib.util
import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from data_files import Bomb, md5, put, tarred
from scipy.io import savemat

from experiments.base.errors import ConfigError, DataError
from experiments.data import cifar10, mnist, svhn
from experiments.data.splits import Splits

TRAIN, TEST = 30, 6  # five batches of six images, and one
Files = dict[str, bytes]


def image(n: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Image n as (channel, row, column): n in the first corner, and all axes can be told apart."""
    channel, row, column = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (n + 2 * row + 3 * column + 50 * channel).astype(np.uint8)


def images(rows: range, shape: tuple[int, int, int] = (3, 32, 32)) -> np.ndarray:
    return np.stack([image(n, shape) for n in rows])


def idx(array: np.ndarray) -> bytes:
    """The idx format: magic number with type (8: unsigned byte) and rank, sizes, bytes."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + sizes + array.astype(np.uint8).tobytes()


def mat(count: int, **changed: object) -> bytes:
    """A file of SVHN: X (32, 32, 3, N), y (N, 1) with 10 for the digit 0."""
    x = images(range(count)).transpose(2, 3, 1, 0)
    y = ((np.arange(count) + 9) % 10 + 1).astype(np.uint8)[:, None]
    buffer = io.BytesIO()
    values = {k: v for k, v in ({"X": x, "y": y} | changed).items() if v is not None}
    savemat(buffer, values, do_compression=True)
    return buffer.getvalue()


def mnist_files() -> Files:
    arrays = {}
    for prefix, size in (("train", TRAIN), ("t10k", TEST)):
        arrays[f"{prefix}-images-idx3-ubyte.gz"] = images(range(size), (1, 28, 28))[:, 0]
        arrays[f"{prefix}-labels-idx1-ubyte.gz"] = np.arange(size) % 10
    return {name: gzip.compress(idx(array), mtime=0) for name, array in arrays.items()}


def svhn_files() -> Files:
    return {"train_32x32.mat": mat(TRAIN), "test_32x32.mat": mat(TEST)}


def batches() -> dict[str, range]:
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    starts = [*range(0, TRAIN, TEST), 0]
    return {name: range(n, n + TEST) for name, n in zip(names, starts, strict=True)}


def python_files() -> Files:
    return {
        name: pickle.dumps(
            {"data": images(rows).reshape(-1, 3072), "labels": [n % 10 for n in rows]}
        )
        for name, rows in batches().items()
    }


def binary_files() -> Files:
    return {
        f"{name}.bin": b"".join(bytes([n % 10]) + image(n, (3, 32, 32)).tobytes() for n in rows)
        for name, rows in batches().items()
    }


class Form(NamedTuple):
    """One of the forms in which a data set is published."""

    module: ModuleType
    places: tuple[str, ...]  # the first one is where downloads go
    made: Callable[[], Files]
    attribute: str  # of the module: the table with the published checksums
    folder: str = ""  # with the files, in the place or in the archive
    archive: str = ""  # where the files are packed

    def publish(self, monkeypatch: pytest.MonkeyPatch, files: Files) -> Files:
        """Make these files the published ones; return what lies in a data folder."""
        table = getattr(self.module, self.attribute)
        if isinstance(table, dict):
            sums = {name: (md5(content), len(content)) for name, content in files.items()}
            monkeypatch.setattr(self.module, self.attribute, sums)
            return files
        inside = {f"{self.folder}/{name}": content for name, content in files.items()}
        content = tarred({"../outside": b"evil"} | inside)
        sums = {
            name: md5(files[name]) if name in files and self.attribute == "PYTHON" else None
            for name in table.files
        }
        changed = replace(table, archive=replace(table.archive, checksum=md5(content)), files=sums)
        monkeypatch.setattr(self.module, self.attribute, changed)
        return {self.archive: content} if self.archive else inside


PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
PLACES = (".", "cifar10")
FORMS = {
    "mnist": Form(mnist, ("MNIST/raw", "mnist", "mnist/raw"), mnist_files, "FILES"),
    "svhn": Form(svhn, ("svhn", "."), svhn_files, "FILES"),
    "python": Form(cifar10, PLACES, python_files, "PYTHON", PYTHON),
    "binary": Form(cifar10, PLACES, binary_files, "BINARY", BINARY),
}
for _name in ("python", "binary"):
    FORMS[f"{_name} archive"] = FORMS[_name]._replace(archive=f"cifar-10-{_name}.tar.gz")
DOWNLOADED = ("mnist", "svhn", "python archive", "binary archive")


def pixels(x: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation."""
    return ((x * 0.3081 + 0.1307) * 255).round().long()


def load(which: Form, root: Path, **options: Any) -> Splits:
    return which.module.load(**({"data_dir": root, "val_size": 5} | options))


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, form in FORMS.items() for place in form.places]
)
def test_values_labels_axes_and_a_folder_that_is_only_read(tmp_path, monkeypatch, name, place):
    form = FORMS[name]
    put(tmp_path / place, form.publish(monkeypatch, form.made()))
    (tmp_path / place).chmod(0o555)
    before = sorted(tmp_path.rglob("*"))
    data = load(form, tmp_path, download=False)
    (tmp_path / place).chmod(0o755)
    assert sorted(tmp_path.rglob("*")) == before
    assert data.sizes() == {"train": 25, "val": 5, "test": TEST}
    shape = (1, 28, 28) if form.module is mnist else (3, 32, 32)
    assert (data.info.input_shape, data.info.num_classes) == (shape, 10)
    assert data.info.source.endswith(", split_seed 0")
    pool = []
    for split, (x, y) in data.items():
        numbers = pixels(x)[:, 0, 0, 0].tolist()
        assert [n % 10 for n in numbers] == y.tolist()
        for n, values in zip(numbers, pixels(x).numpy(), strict=True):
            np.testing.assert_array_equal(values, image(n, shape))
        pool += numbers if split != "test" else []
    assert sorted(pool) == list(range(TRAIN))
    assert data.test[1].tolist() == list(range(TEST))


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_download_that_breaks_is_continued_and_kept(tmp_path, monkeypatch, server, name):
    form = FORMS[name]
    files = form.publish(monkeypatch, form.made())
    server.bodies = {f"/{file}": content for file, content in files.items()}
    server.ranges = set(server.bodies)
    server.cut = {f"/{file}": len(content) - 10 for file, content in files.items()}
    if form.module is mnist:
        monkeypatch.setattr(mnist, "MIRRORS", (f"{server.url}/gone/", f"{server.url}/"))
    elif form.module is svhn:
        monkeypatch.setattr(svhn, "URL", f"{server.url}/")
    else:
        table = getattr(cifar10, form.attribute)
        remote = replace(table.archive, urls=(f"{server.url}/{form.archive}",))
        monkeypatch.setattr(cifar10, form.attribute, replace(table, archive=remote))
    options = {"form": form.attribute.lower()} if form.module is cifar10 else {}
    for _ in range(2):
        assert load(form, tmp_path, **options).sizes()["train"] == 25
    assert all(server.hits[path] == 2 for path in server.bodies)
    assert sorted(p.name for p in (tmp_path / form.places[0]).iterdir()) == sorted(files)


@pytest.mark.parametrize("name", [name for name in FORMS if name != "binary"])
def test_another_file_is_refused_by_its_checksum(tmp_path, monkeypatch, name):
    form = FORMS[name]
    files = form.publish(monkeypatch, form.made())
    last = list(files)[-1]
    put(tmp_path / form.places[0], files | {last: files[last][:-1]})
    with pytest.raises(DataError, match=rf"{Path(last).name}: wrong md5 checksum .*delete it"):
        load(form, tmp_path)


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        (mnist, r"put train-images-idx3-ubyte\.gz, .* into .*MNIST.raw"),
        (svhn, r"put train_32x32\.mat and test_32x32\.mat into .*svhn"),
        (cifar10, r"put cifar-10-python\.tar\.gz into"),
    ],
)
def test_missing_files_and_folder(tmp_path, module, hint):
    with pytest.raises(DataError, match=hint):
        module.load(data_dir=tmp_path, download=False)
    with pytest.raises(ConfigError, match="data_dir is not set"):
        module.load(data_dir=None)


def test_the_options_of_image_sets(tmp_path, monkeypatch):
    form = FORMS["svhn"]
    put(tmp_path, form.publish(monkeypatch, form.made()))
    full = load(form, tmp_path)
    short = load(form, tmp_path, limit_train=7, mean=0.0, std=1.0)
    assert torch.equal(short.train[1], full.train[1][:7])
    assert torch.equal(short.val[1], full.val[1])
    assert float(short.test[0][0, 0, 0, 1]) == pytest.approx(3 / 255)
    assert not torch.equal(full.val[1], load(form, tmp_path, split_seed=1).val[1])
    for options, message in (
        ({"val_size": 0}, r"val_size is 0, but has to be in 1 \.\.\. 29"),
        ({"val_size": TRAIN}, "val_size is 30"),
        ({"limit_train": 26}, r"limit_train is 26, but has to be in 1 \.\.\. 25"),
        ({"limit_train": 0}, "limit_train is 0"),
        ({"std": 0.0}, "std has to be positive"),
        ({"mean": float("nan")}, "mean is nan"),
        ({"split_seed": -1}, "split_seed -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(form, tmp_path, **options)
    with pytest.raises(ConfigError, match="form is 'bin', but has to be one of auto, python"):
        cifar10.load(data_dir=tmp_path, form="bin")


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
MAT = "test_32x32.mat"
BATCH, BINARY_BATCH = "data_batch_2", "data_batch_2.bin"
NO_MAT = "cannot be read as a MATLAB file"
GREY = np.zeros((32, 32, 1, TEST), np.uint8)
HDF = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("mnist", IMAGES, b"plain", "cannot be unpacked"),
        ("mnist", IMAGES, gzip.compress(idx(np.zeros((TRAIN, 28, 28)))[:-5]), "reshape"),
        ("mnist", IMAGES, gzip.compress(b"\xff" * 100), "magic number is 0xffffffff"),
        ("mnist", IMAGES, gzip.compress(b""), "cannot be unpacked as an idx file"),
        ("mnist", LABELS, gzip.compress(idx(np.full(TRAIN, 11))), "split: label 11 of example"),
        ("mnist", LABELS, gzip.compress(idx(np.ones(9))), "30 training images, but 9 labels"),
        ("svhn", MAT, mat(TEST, y=None), "no variable y, only X"),
        ("svhn", MAT, mat(TEST, X=None, Z=np.zeros(3)), r"no variable X, only \w+"),
        ("svhn", MAT, mat(TEST, X=GREY), r"X is uint8 of shape \(32, 32, 1"),
        ("svhn", MAT, mat(TEST, X=np.zeros((32, 32, 3, TEST))), "X is float64"),
        ("svhn", MAT, mat(TEST, y=np.full((TEST, 1), 11)), r"labels other than 1 \.\.\. 10"),
        ("svhn", MAT, mat(TEST, y=np.ones((5, 1))), "6 test images, but 5 labels"),
        ("svhn", MAT, mat(TEST)[:1000], "no variable y, only X; it is truncated"),
        ("svhn", MAT, mat(TEST)[:100], NO_MAT),
        ("svhn", MAT, b"<html>", NO_MAT),
        ("svhn", MAT, HDF, r"version 7\.3"),
        ("svhn", MAT, b"", NO_MAT),
        ("python", BATCH, pickle.dumps([1]), "data_batch_2 is no batch of CIFAR-10"),
        ("binary", BINARY_BATCH, b"x" * 3074, "3074 bytes, no multiple of the 3073"),
        ("binary", BINARY_BATCH, b"\0" * 3073, "all training batches have the same size"),
        ("binary", "test_batch.bin", b"\n" + b"\0" * 3072, "test split: label 10 of example 0"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,  # a .mat file has the time in it
)
def test_right_checksum_but_unreadable_content(tmp_path, monkeypatch, name, file, content, message):
    form = FORMS[name]
    files = form.publish(monkeypatch, form.made() | {file: content})
    put(tmp_path / form.places[0], files)
    with pytest.raises(DataError, match=message):
        load(form, tmp_path)


@pytest.mark.parametrize("name", ["python", "python archive", "binary", "binary archive"])
def test_a_batch_that_is_missing(tmp_path, monkeypatch, name):
    form = FORMS[name]
    files = form.made()
    gone = list(files)[1]
    del files[gone]
    put(tmp_path, form.publish(monkeypatch, files))
    with pytest.raises(DataError, match=rf"{gone}: cannot be read|be unpacked: .*{gone}"):
        load(form, tmp_path)


@pytest.mark.parametrize("name", ["python", "python archive"])
def test_bytes_that_are_not_the_published_ones_are_never_unpickled(tmp_path, monkeypatch, name):
    form, crater = FORMS[name], tmp_path / "crater"
    hostile = form.made() | {"data_batch_3": pickle.dumps(Bomb(crater))}
    with monkeypatch.context() as patch:
        put(tmp_path, form.publish(patch, hostile))
    form.publish(monkeypatch, form.made())
    with pytest.raises(DataError, match="wrong md5 checksum"):
        load(form, tmp_path)
    assert not crater.exists()
    pickle.loads(hostile["data_batch_3"])
    assert crater.exists()  # the bomb does work


def test_which_form_of_cifar10_is_read(tmp_path, monkeypatch):
    """The python version first, a folder before an archive; another one where it is asked for."""
    for name in ("binary", "python archive"):
        put(tmp_path, FORMS[name].publish(monkeypatch, FORMS[name].made()))
    ours, other = (load(FORMS["python"], tmp_path, form=form) for form in ("auto", "binary"))
    assert "as published" in ours.info.source
    assert "unpacked binary version" in other.info.source
    for (_, left), (_, right) in zip(ours.items(), other.items(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    assert load(FORMS["python"], tmp_path).info == other.info
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz into"):
        load(FORMS["python"], tmp_path, form="python", download=False)


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    """Torchvision's data sets.

    A CPU build of torch may meet a torchvision whose extension is linked against CUDA. Then two
    operators have to be declared before the import.
    """
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / f"_C{EXTENSION_SUFFIXES[0]}"))
    except (OSError, RuntimeError):
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
    return importlib.import_module("torchvision.datasets")


def test_addresses_and_checksums_are_torchvisions(oracle):
    sums = [(name, checksum.removeprefix("md5:")) for name, (checksum, _) in mnist.FILES.items()]
    assert sums == oracle.MNIST.resources
    assert list(mnist.MIRRORS) == oracle.MNIST.mirrors
    for split in ("train", "test"):
        url, name, checksum = oracle.SVHN.split_list[split]
        assert (svhn.URL + name, svhn.FILES[name][0]) == (url, f"md5:{checksum}")
    archive = cifar10.PYTHON.archive
    assert archive.urls == (oracle.CIFAR10.url,)
    assert archive.checksum == f"md5:{oracle.CIFAR10.tgz_md5}"
    listed = [*oracle.CIFAR10.train_list, *oracle.CIFAR10.test_list]
    assert cifar10.PYTHON.files == {name: f"md5:{checksum}" for name, checksum in listed}


@pytest.mark.parametrize("name", ["mnist", "svhn", "python"])
def test_images_are_torchvisions(oracle, tmp_path, monkeypatch, name):
    form = FORMS[name]
    files = form.publish(monkeypatch, form.made())
    put(tmp_path / form.places[0], files)
    data = load(form, tmp_path)
    if name == "mnist":
        unpacked = {Path(file).stem: gzip.decompress(content) for file, content in files.items()}
        put(tmp_path / "MNIST/raw", unpacked)
        theirs = oracle.MNIST(str(tmp_path), train=False)
        expected, labels = theirs.data[:, None].numpy(), theirs.targets.tolist()
    elif name == "svhn":
        listed = ["", MAT, md5(files[MAT]).removeprefix("md5:")]
        monkeypatch.setattr(oracle.SVHN, "split_list", {"test": listed})
        theirs = oracle.SVHN(str(tmp_path / "svhn"), split="test")
        expected, labels = theirs.data, theirs.labels.tolist()
    else:
        meta = pickle.dumps({"label_names": list("abcdefghij")})
        put(tmp_path / PYTHON, {"batches.meta": meta})
        sums = [[Path(file).name, md5(c).removeprefix("md5:")] for file, c in files.items()]
        monkeypatch.setattr(oracle.CIFAR10, "train_list", sums[:5])
        monkeypatch.setattr(oracle.CIFAR10, "test_list", sums[5:])
        changed = oracle.CIFAR10.meta | {"md5": md5(meta).removeprefix("md5:")}
        monkeypatch.setattr(oracle.CIFAR10, "meta", changed)
        theirs = oracle.CIFAR10(str(tmp_path), train=False)
        expected, labels = theirs.data.transpose(0, 3, 1, 2), theirs.targets
    np.testing.assert_array_equal(pixels(data.test[0]).numpy(), expected)
    assert data.test[1].tolist() == labels


def test_the_real_mnist(real_data):
    if not any((real_data / folder).is_dir() for folder in mnist.FOLDERS):
        pytest.skip(f"{real_data} has no MNIST")
    data = mnist.load(data_dir=real_data, download=False)
    assert data.sizes() == {"train": 55_000, "val": 5_000, "test": 10_000}
    # The published constants are the mean and deviation of the 60000 training images.
    x = torch.cat([data.train[0], data.val[0]])
    assert abs(float(x.mean(dtype=torch.float64))) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3
    # Class counts of the published sets.
    y = torch.cat([data.train[1], data.val[1]])
    assert torch.bincount(y).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert int(torch.bincount(data.test[1])[1]) == 1135
