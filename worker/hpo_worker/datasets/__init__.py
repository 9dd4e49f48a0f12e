"""The images a worker trains on: a dataset by name, from inside the package or from the worker's data folder.

A dataset is never given as a path, and no reader here can run code that a file carries.
"""

from __future__ import annotations

import functools
from pathlib import Path

from hpo_service.domain.neural_network import DATASET_NAME
from hpo_worker.datasets.dataset import Dataset, DatasetDiffers, DatasetError, DatasetMissing, dataset_from_arrays
from hpo_worker.datasets.found_files import advice, contents
from hpo_worker.datasets.idx import read_idx_folder
from hpo_worker.datasets.npz import read_npz

__all__ = ["Dataset", "DatasetDiffers", "DatasetError", "DatasetMissing", "find", "load"]

INSIDE = {"mnist": Path(__file__).parent / "mnist"}


def load(name: str, folder: Path | None = None) -> Dataset:
    """Return the dataset of that name, read once per process.

    `mnist` lies inside the package. Any other name is, in the data folder, either a folder with the four IDX
    files (plain or .gz) or one file NAME.npz. Raise DatasetMissing where there is none, DatasetError where
    its files break a rule.
    """
    return _read(name, find(name, folder))


def find(name: str, folder: Path | None = None) -> Path:
    """The path of that dataset; its files are not read. Raise DatasetMissing, DatasetError."""
    if not DATASET_NAME.fullmatch(name):
        raise DatasetError(
            f"{name!r} is not a dataset's name: that is 1 to 63 letters, digits, - and _, and begins "
            "and ends with a letter or digit; name the dataset, and put its files into the worker's data folder"
        )
    return INSIDE[name] if name in INSIDE else _place(name, folder)


def _place(name: str, folder: Path | None) -> Path:
    if folder is None:
        raise DatasetMissing(
            f"the dataset {name!r} is not inside the package, and there is no data folder; name one with --data "
            f"or HPO_DATA, and put the dataset there: a folder {name}/ with the four IDX files, or {name}.npz with "
            "x_train, t_train, x_test and t_test"
        )
    found = [place for place in (folder / name, folder / f"{name}.npz") if place.exists()]
    if not found:
        raise DatasetMissing(
            f"no dataset {name!r} in {folder}: neither a folder {name}/ with the four IDX files nor "
            f"{name}.npz; put one of them there. It holds {contents(folder)}{advice(name, folder)}"
        )
    if len(found) > 1:
        raise DatasetError(
            f"the dataset {name!r} is in {folder} twice, as {name}/ and as {name}.npz; remove one of them"
        )
    return found[0].resolve()


@functools.lru_cache(maxsize=4)
def _read(name: str, place: Path) -> Dataset:
    arrays = read_idx_folder(place) if place.is_dir() else read_npz(place)
    return dataset_from_arrays(name, place, arrays)
