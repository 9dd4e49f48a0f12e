"""Reads a dataset from one .npz file with the arrays x_train, t_train, x_test and t_test.

Keras' mnist.npz says y for the labels, others train_images and train_labels.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpo_worker.datasets.dataset import DatasetError

NAMES = ("x_train", "t_train", "x_test", "t_test")
OTHER_NAMES = {
    "x_train": ("X_train", "train_images", "train_x", "train_data"),
    "t_train": ("y_train", "Y_train", "train_labels", "train_y"),
    "x_test": ("X_test", "test_images", "test_x", "test_data"),
    "t_test": ("y_test", "Y_test", "test_labels", "test_y"),
}


def read_npz(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Return the four arrays."""
    try:
        # allow_pickle=False: a pickle could run code of whoever made the file
        with np.load(path, allow_pickle=False) as file:
            called = {name: _called(path, name, file.files) for name in NAMES}
            missing = [name for name, found in called.items() if found is None]
            if missing:
                raise DatasetError(
                    f"{path}: {', '.join(missing)} missing; it has {', '.join(file.files) or 'nothing'}, "
                    f"and a dataset is the arrays {', '.join(NAMES)}: save it with np.savez"
                )
            return {name: file[found] for name, found in called.items() if found is not None}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, AttributeError) as broken:
        raise DatasetError(f"{path}: is not an .npz file of plain arrays ({broken}); save it with np.savez") from broken


def _called(path: Path, name: str, there: Collection[str]) -> str | None:
    """What this array is called in the file."""
    if name in there:
        return name
    found = [other for other in OTHER_NAMES[name] if other in there]
    if len(found) > 1:
        raise DatasetError(f"{path}: {' and '.join(found)} may both be {name}; keep one of them")
    return found[0] if found else None
