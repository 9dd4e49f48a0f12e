"""Reads IDX, the format MNIST is published in (yann.lecun.com/exdb/mnist): a magic number, sizes, bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpo_worker.datasets.dataset import DatasetError

# The published names; Fashion-MNIST, KMNIST and others use the same.
FILES = {
    "x_train": "train-images-idx3-ubyte",
    "t_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "t_test": "t10k-labels-idx1-ubyte",
}
UNSIGNED_BYTE = 0x08
DIMENSIONS = {"x": 3, "t": 1}


def read_idx_folder(folder: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays of the four files, each plain or .gz."""
    return {name: _read_idx(_find(folder, file), DIMENSIONS[name[0]]) for name, file in FILES.items()}


def _find(folder: Path, file: str) -> Path:
    for path in (folder / file, folder / f"{file}.gz"):
        if path.is_file():
            return path
    raise DatasetError(
        f"{folder}: neither {file} nor {file}.gz is there; an IDX dataset is the four files {', '.join(FILES.values())}"
    )


def _read_idx(path: Path, dimensions: int) -> npt.NDArray[np.generic]:
    content = _content(path)
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if content[:4] != magic:
        raise DatasetError(
            f"{path}: begins with {content[:4].hex(' ') or 'nothing'}, not with {magic.hex(' ')} "
            f"as an IDX file of unsigned bytes does (dimensions: {dimensions}); fetch it again"
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DatasetError(f"{path}: has {len(content)} bytes, fewer than the {header} of its header; fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise DatasetError(
            f"{path}: has {len(content)} bytes, but its header announces {header + math.prod(shape)} (sizes {shape}); "
            "it is cut off or damaged: fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as broken:
        raise DatasetError(f"{path}: cannot be read ({broken}); fetch it again") from broken
