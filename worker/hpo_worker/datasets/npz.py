"""Reads a dataset from one .npz file with the arrays x_train, t_train, x_test and t_test."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpo_worker.datasets.dataset import DatasetError

NAMES = ("x_train", "t_train", "x_test", "t_test")


def read_npz(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Return the four arrays."""
    try:
        # allow_pickle=False: a pickle could run code of whoever made the file
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in NAMES if name not in file.files]
            if missing:
                raise DatasetError(
                    f"{path}: {', '.join(missing)} missing; it has {', '.join(file.files) or 'nothing'}, "
                    f"and a dataset is the arrays {', '.join(NAMES)}: save it with np.savez"
                )
            return {name: file[name] for name in NAMES}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, AttributeError) as broken:
        raise DatasetError(f"{path}: is not an .npz file of plain arrays ({broken}); save it with np.savez") from broken
