"""A labelled image set: checked, scaled and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hpo_service.domain.errors import HpoError

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Kind = TypeVar("Kind", bound=np.generic)
Arrays = Mapping[str, npt.NDArray[np.generic]]

# Axes: N images, P pixels.
PARTS = ("train", "test")
LARGEST_CLASS = 9_999


class DatasetError(HpoError):
    """The files of a dataset break a rule; the message says what, where, which and what to do."""

    code = "dataset"


class DatasetMissing(DatasetError):
    """This worker does not have the dataset."""

    code = "dataset_missing"


class DatasetDiffers(DatasetError):
    """The study is bound to other data under this name."""

    code = "dataset_differs"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (N, P) as float32 in [0, 1] with labels (N,) from 0, in a training and a test part.

    `sha256` is that of the arrays as they are stored, so that it is the same for .gz and plain files.
    """

    name: str
    sha256: str
    x_train: Images
    t_train: Labels
    x_test: Images
    t_test: Labels

    @property
    def classes(self) -> int:
        """How many classes there are, by the training labels: the test labels stay sealed."""
        return int(self.t_train.max()) + 1


def dataset_from_arrays(name: str, place: Path, arrays: Arrays) -> Dataset:
    """Check the arrays x_train, t_train, x_test and t_test as they were read from `place`."""
    arrays = {name: _in_a_row(array) if name.startswith("t_") else array for name, array in arrays.items()}
    for part in PARTS:
        _check_images(place, f"x_{part}", arrays[f"x_{part}"])
        _check_labels(place, f"t_{part}", arrays[f"t_{part}"], len(arrays[f"x_{part}"]))
    training, test = (arrays[f"x_{part}"].shape[1:] for part in PARTS)
    if training != test:
        raise DatasetError(
            f"{place}: the images of x_train have the shape {training}, those of x_test {test}; "
            "all images of a dataset have one shape"
        )
    _check_classes(place, arrays["t_train"], arrays["t_test"])
    return Dataset(
        name,
        _sha256(arrays),
        _scaled(arrays["x_train"]),
        _frozen(arrays["t_train"].astype(np.int64)),
        _scaled(arrays["x_test"]),
        _frozen(arrays["t_test"].astype(np.int64)),
    )


def _in_a_row(labels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Flatten labels that are a column, (N, 1), as Keras stores CIFAR's."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _check_images(place: Path, name: str, images: npt.NDArray[np.generic]) -> None:
    if images.ndim < 2 or images.size == 0:
        raise DatasetError(
            f"{place}: {name} has the shape {images.shape}; images are (N, pixels) or (N, rows, columns), "
            "at least one of each"
        )
    if images.dtype == np.uint8:
        return
    if images.dtype not in (np.float16, np.float32, np.float64):
        raise DatasetError(
            f"{place}: {name} is of type {images.dtype}; pixels are uint8 from 0 to 255, "
            "or floats from 0 to 1; convert them"
        )
    # written so that a NaN fails it
    if not (images.min() >= 0 and images.max() <= 1):
        raise DatasetError(
            f"{place}: {name} goes from {images.min()} to {images.max()}; floats are pixels from 0 to 1; scale them"
        )


def _check_labels(place: Path, name: str, labels: npt.NDArray[np.generic], images: int) -> None:
    if labels.shape != (images,):
        one_hot = " (one-hot: take argmax(axis=1))" if labels.ndim == 2 else ""
        raise DatasetError(
            f"{place}: {name} has the shape {labels.shape}, but there are {images} images; "
            f"there is one label for each image, (N,){one_hot}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DatasetError(
            f"{place}: {name} is of type {labels.dtype}; labels are integers: convert them (one-hot: argmax)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > LARGEST_CLASS:
        raise DatasetError(
            f"{place}: {name} goes from {low} to {high}; labels count the classes from 0 to at most {LARGEST_CLASS}"
        )


def _check_classes(place: Path, train: npt.NDArray[np.generic], test: npt.NDArray[np.generic]) -> None:
    """Raise DatasetError; of the test set it says only that it does not fit, since its labels stay sealed."""
    low, high = int(train.min()), int(train.max())
    if low > 0:
        raise DatasetError(
            f"{place}: t_train goes from {low} to {high}, and labels count the classes from 0: "
            f"subtract {low} from t_train and t_test"
        )
    if not np.isin(test, train).all():
        raise DatasetError(
            f"{place}: t_test has classes that t_train lacks, whose images nothing could learn to tell; "
            "take them out, or add some to the training images"
        )


def _sha256(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        for name in (f"x_{part}", f"t_{part}"):
            array = np.ascontiguousarray(arrays[name])
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.data)
    return digest.hexdigest()


def _scaled(images: npt.NDArray[np.generic]) -> Images:
    flat = images.reshape(len(images), -1)
    scaled = flat.astype(np.float32)
    if images.dtype == np.uint8:
        scaled /= np.float32(255)
    return _frozen(scaled)


def _frozen(array: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    array.flags.writeable = False
    return array
