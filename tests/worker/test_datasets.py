"""Datasets by name: MNIST inside the package, IDX folders and .npz files in a data folder."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hpo_worker.datasets
from hpo_worker.datasets import DatasetError, DatasetMissing, load
from hpo_worker.datasets.idx import FILES

PUBLISHED_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}

RNG = np.random.default_rng(0)
ARRAYS = {
    "x_train": RNG.integers(256, size=(12, 4, 3), dtype=np.uint8),
    "t_train": np.arange(12, dtype=np.uint8) % 3,
    "x_test": RNG.integers(256, size=(5, 4, 3), dtype=np.uint8),
    "t_test": np.arange(5, dtype=np.uint8) % 3,
}


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, gz: bool = False, **changed: bytes) -> None:
    folder.mkdir()
    for name, file in FILES.items():
        content = changed.get(name, idx(ARRAYS[name]))
        if gz:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)


def write_npz(path: Path, **changed: np.ndarray) -> None:
    np.savez(path, **(ARRAYS | changed))


def test_mnist_is_the_one_that_was_published() -> None:
    inside = Path(hpo_worker.datasets.__file__).parent / "mnist"

    assert {
        name: hashlib.md5(gzip.decompress((inside / f"{name}.gz").read_bytes()), usedforsecurity=False).hexdigest()
        for name in PUBLISHED_MD5
    } == PUBLISHED_MD5
    attribution = (inside / "ATTRIBUTION.md").read_text()
    assert "Yann LeCun" in attribution
    assert "Corinna Cortes" in attribution
    assert "ShareAlike 3.0" in attribution


def test_mnist_is_read_once_as_scaled_floats_that_nobody_can_change() -> None:
    mnist = load("mnist")

    assert mnist.x_train.shape == (60_000, 784)
    assert mnist.x_test.shape == (10_000, 784)
    assert mnist.x_train.dtype == np.float32
    assert mnist.t_train.dtype == np.int64
    assert (mnist.x_train.min(), mnist.x_train.max()) == (0, 1)
    assert mnist.classes == 10
    assert np.bincount(mnist.t_train).min() == 5421
    assert load("mnist") is mnist
    with pytest.raises(ValueError, match="read-only"):
        mnist.x_train[0, 0] = 1


@pytest.mark.parametrize("gz", [False, True])
def test_a_folder_of_idx_files_is_a_dataset(tmp_path: Path, gz: bool) -> None:
    write_idx(tmp_path / "Fashion-MNIST", gz)

    dataset = load("Fashion-MNIST", tmp_path)

    assert dataset.name == "Fashion-MNIST"
    assert np.allclose(dataset.x_train, ARRAYS["x_train"].reshape(12, 12) / 255)
    assert dataset.t_test.tolist() == [0, 1, 2, 0, 1]


def test_the_fingerprint_is_that_of_the_numbers_whatever_holds_them(tmp_path: Path) -> None:
    write_idx(tmp_path / "plain")
    write_idx(tmp_path / "packed", gz=True)
    write_npz(tmp_path / "npz.npz")
    other = ARRAYS["t_test"].copy()
    other[0] = 2
    write_npz(tmp_path / "other.npz", t_test=other)

    plain, packed, npz, changed = (load(name, tmp_path).sha256 for name in ("plain", "packed", "npz", "other"))

    assert plain == packed == npz != changed
    assert len(plain) == 64


def test_an_npz_of_floats_is_a_dataset(tmp_path: Path) -> None:
    write_npz(tmp_path / "own.npz", x_train=ARRAYS["x_train"] / 255, x_test=ARRAYS["x_test"].reshape(5, 4, 3) / 255)

    dataset = load("own", tmp_path)

    assert dataset.x_train.dtype == np.float32
    assert np.allclose(dataset.x_test, ARRAYS["x_test"].reshape(5, 12) / 255)


@pytest.mark.parametrize(
    "name", ["", "../mnist", "a/b", "a\\b", ".hidden", "a.npz", "-a", "a-", "a\n", "a" * 64, "/etc", "ä", "a b", "a\0"]
)
def test_a_dataset_is_never_named_by_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a dataset's name"):
        load(name, tmp_path)


def test_a_dataset_that_is_not_there_is_missing_and_the_message_says_where(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match=r"no dataset 'own' in .*: neither a folder own/ .* nor own\.npz"):
        load("own", tmp_path)
    with pytest.raises(DatasetMissing, match="there is no data folder; name one with --data"):
        load("own", None)


def test_a_dataset_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / "own")
    write_npz(tmp_path / "own.npz")

    with pytest.raises(DatasetError, match="twice"):
        load("own", tmp_path)


def without_labels(folder: Path) -> None:
    write_idx(folder / "own")
    (folder / "own" / FILES["t_test"]).unlink()


def cut_off_gz(folder: Path) -> None:
    write_idx(folder / "own", gz=True)
    path = folder / "own" / f"{FILES['x_train']}.gz"
    path.write_bytes(path.read_bytes()[:-20])


def not_gz(folder: Path) -> None:
    write_idx(folder / "own", gz=True)
    (folder / "own" / f"{FILES['x_train']}.gz").write_bytes(b"<html>not found</html>")


def pickled(folder: Path) -> None:
    write_npz(folder / "own.npz", t_test=np.array([{}] * 5, dtype=object))


def plain_text(folder: Path) -> None:
    (folder / "own.npz").write_text("not a zip")


def no_test_part(folder: Path) -> None:
    np.savez(folder / "own.npz", x_train=ARRAYS["x_train"], y_train=ARRAYS["t_train"])


def changed_idx(**changed: Any) -> Callable[[Path], None]:
    return lambda folder: write_idx(folder / "own", **changed)


def changed_npz(**changed: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: write_npz(folder / "own.npz", **changed)


X, T = ARRAYS["x_train"], ARRAYS["t_train"]
BROKEN = {
    "a file is missing": (without_labels, "neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz is there"),
    "another format": (changed_idx(x_train=b"\x89PNG and more"), "begins with 89 50 4e 47, not with 00 00 08 03"),
    "an empty file": (changed_idx(t_train=b""), "begins with nothing, not with 00 00 08 01"),
    "labels where images belong": (changed_idx(x_train=idx(T)), "begins with 00 00 08 01, not with 00 00 08 03"),
    "only a header": (changed_idx(x_train=idx(X)[:9]), "9 bytes, fewer than the 16 of its header"),
    "cut off": (changed_idx(x_train=idx(X)[:-1]), "159 bytes, but its header announces 160"),
    "too long": (changed_idx(x_train=idx(X) + b"!"), "161 bytes, but its header announces 160"),
    "sizes beyond memory": (
        changed_idx(x_train=b"\0\0\x08\x03" + b"\xff" * 12),
        "its header announces 79228162458924105385300197391",
    ),
    "a .gz that is cut off": (cut_off_gz, "cannot be read"),
    "a .gz that is none": (not_gz, "cannot be read"),
    "a pickle": (pickled, "is not an .npz file of plain arrays"),
    "no zip": (plain_text, "is not an .npz file of plain arrays"),
    "other names": (no_test_part, "t_train, x_test, t_test missing; it has x_train, y_train"),
    "fewer labels than images": (changed_npz(t_train=T[:-1]), r"t_train has the shape \(11,\), but there are 12"),
    "one-hot labels": (changed_npz(t_train=np.eye(12)), r"there is one label for each image"),
    "float labels": (changed_npz(t_train=T / 2), "labels are integers"),
    "negative labels": (changed_npz(t_train=T.astype(int) - 1), "from -1 to 1; labels count the classes from 0"),
    "huge labels": (changed_npz(t_train=T.astype(int) + 10**12), "labels count the classes from 0 to at most 9999"),
    "unscaled floats": (changed_npz(x_train=X.astype(float)), "floats are pixels from 0 to 1; scale them"),
    "a NaN": (changed_npz(x_train=np.where(X > 128, np.nan, 0)), "goes from nan to nan"),
    "integers of another size": (changed_npz(x_train=X.astype(int)), "pixels are uint8 from 0 to 255"),
    "images of two shapes": (changed_npz(x_test=ARRAYS["x_test"][:, :2]), "all images of a dataset have one shape"),
    "no images": (changed_npz(x_train=X[:0], t_train=T[:0]), "at least one of each"),
    "a list of numbers": (changed_npz(x_train=np.zeros(12)), r"x_train has the shape \(12,\)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_dataset_says_what_is_wrong_and_where(name: str, tmp_path: Path) -> None:
    write, message = BROKEN[name]
    write(tmp_path)

    with pytest.raises(DatasetError, match=message) as refused:
        load("own", tmp_path)

    assert str(tmp_path) in str(refused.value)
