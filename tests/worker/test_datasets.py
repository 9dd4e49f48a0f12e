"""Datasets by name: MNIST inside the package, IDX folders and .npz files in a data folder."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shlex
import struct
import subprocess
import sys
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
ARRAYS: dict[str, Any] = {
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


@pytest.mark.slow
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
    "a .gz that is none": (not_gz, "begins with 3c 68 74 6d"),
    "a pickle": (pickled, "is not an .npz file of plain arrays"),
    "no zip": (plain_text, "is not an .npz file of plain arrays"),
    "other names": (no_test_part, "x_test, t_test missing; it has x_train, y_train"),
    "fewer labels than images": (changed_npz(t_train=T[:-1]), r"t_train has the shape \(11,\), but there are 12"),
    "one-hot labels": (changed_npz(t_train=np.eye(12)), r"one label for each image, .*argmax\(axis=1\)"),
    "float labels": (changed_npz(t_train=T / 2), "labels are integers"),
    "negative labels": (changed_npz(t_train=T.astype(int) - 1), "from -1 to 1; labels count the classes from 0"),
    "huge labels": (changed_npz(t_train=T.astype(int) + 10**12), "labels count the classes from 0 to at most 9999"),
    "labels from 1": (
        changed_npz(t_train=T + 1, t_test=ARRAYS["t_test"] + 1),
        "t_train goes from 1 to 3, and labels count the classes from 0: subtract 1 from t_train and t_test",
    ),
    "classes in the test set alone": (
        changed_npz(t_test=ARRAYS["t_test"] * 2),
        "t_test has classes that t_train lacks",
    ),
    "two kinds of labels": (
        lambda folder: np.savez(
            folder / "own.npz", y_train=T, train_labels=T, **{k: v for k, v in ARRAYS.items() if k != "t_train"}
        ),
        "y_train and train_labels may both be t_train",
    ),
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


def files_named(folder: Path, *names: str, packed: bool = False) -> None:
    for name, array in zip(names, ARRAYS.values(), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(idx(array)) if packed else idx(array))


@pytest.mark.parametrize("packed", [False, True], ids=["plain bytes", "gzip"])
@pytest.mark.parametrize(
    "names",
    [
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
        tuple(
            f"emnist-letters-{part}-{what}-ubyte.gz"
            for part in ("train", "test")
            for what in ("images-idx3", "labels-idx1")
        ),
        tuple(f"{name}/{name}" for name in FILES.values()),
        tuple(f"gzip/{name}.gz" for name in FILES.values()),
        tuple(f"{name}.gz" for name in FILES.values()),
        tuple(FILES.values()),
    ],
    ids=["dotted", "EMNIST", "Kaggle", "a folder below", "published .gz", "published"],
)
def test_idx_files_are_found_by_the_names_they_are_packed_under(
    tmp_path: Path, names: tuple[str, ...], packed: bool
) -> None:
    files_named(tmp_path / "own", *names, packed=packed)
    write_npz(tmp_path / "same.npz")
    assert load("own", tmp_path).sha256 == load("same", tmp_path).sha256


def test_two_datasets_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    for name in ("letters", "digits"):
        parts = [f"emnist-{name}-{p}-{w}-ubyte" for p in ("train", "test") for w in ("images-idx3", "labels-idx1")]
        files_named(tmp_path / "own", *parts)
    with pytest.raises(DatasetError, match="several files may be train-images-idx3-ubyte: emnist-digits-train"):
        load("own", tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X_train", "y_train", "X_test", "y_test"),
    ],
    ids=["Keras", "medmnist", "scikit-learn"],
)
def test_arrays_are_found_by_the_names_that_other_tools_give_them(tmp_path: Path, names: tuple[str, ...]) -> None:
    np.savez(tmp_path / "theirs.npz", **dict(zip(names, ARRAYS.values(), strict=True)))
    write_npz(tmp_path / "ours.npz")
    assert load("theirs", tmp_path).sha256 == load("ours", tmp_path).sha256


def test_labels_in_a_column_are_labels(tmp_path: Path) -> None:
    """As Keras gives CIFAR's, of which argmax(axis=1) would make every label 0."""
    columns = {name: ARRAYS[name][:, None] for name in ("t_train", "t_test")}
    write_npz(tmp_path / "column.npz", **columns)
    assert load("column", tmp_path).t_train.tolist() == ARRAYS["t_train"].tolist()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["own.pkl"], r"own\.pkl is a pickle, which is not read .*numpy\.savez\('own\.npz', x_train=d\['train_img'\]"),
        (["own.zip"], r"unpack own\.zip into the folder own/"),
        (["Own.npz", "other.npz"], r"It holds Own\.npz, other\.npz; did you mean Own\.npz\?"),
        (["own/mnist.pkl"], r"but mnist\.pkl; .*mnist\.pkl is a pickle"),
        (["own/mnist.npz"], r"but mnist\.npz; .*move mnist\.npz out of the folder, to own\.npz"),
        (["own/train.csv", "own/test.csv"], r"but test\.csv, train\.csv; an IDX dataset is the four files"),
        (["train-images-idx3-ubyte"], r"It holds train-images-idx3-ubyte"),
    ],
)
def test_what_was_found_instead_is_said_and_what_to_do(tmp_path: Path, files: list[str], words: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"some bytes")
    with pytest.raises(DatasetError, match=words):
        load("own", tmp_path)


def test_the_book_s_pickle_becomes_a_dataset_by_the_command_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"train_img": "x_train", "train_label": "t_train", "test_img": "x_test", "test_label": "t_test"}
    Path("own.pkl").write_bytes(pickle.dumps({theirs: ARRAYS[ours] for theirs, ours in names.items()}))
    with pytest.raises(DatasetMissing) as missing:
        load("own", tmp_path)
    command = shlex.split(str(missing.value).partition("convert it: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert load("own", tmp_path).t_train.tolist() == ARRAYS["t_train"].tolist()
