"""Reads IDX, the format MNIST is published in (yann.lecun.com/exdb/mnist): a magic number, sizes, bytes."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpo_worker.datasets.dataset import DatasetError
from hpo_worker.datasets.found_files import SHOWN, advice, contents

# The published names; Fashion-MNIST, KMNIST and others use the same.
FILES = {
    "x_train": "train-images-idx3-ubyte",
    "t_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "t_test": "t10k-labels-idx1-ubyte",
}
# As they are packed elsewhere: train-images.idx3-ubyte, emnist-letters-test-labels-idx1-ubyte, and in a folder each.
_NAME = re.compile(r"(?:.*[-_.])?(train|t10k|test)[-_.](images|labels)[-_.]idx([13])[-_.]ubyte(\.gz)?", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
UNSIGNED_BYTE = 0x08
DIMENSIONS = {"x": 3, "t": 1}


def read_idx_folder(folder: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays of the four files, each plain or .gz, in the folder or in folders of their own in it."""
    found = _found(folder)
    return {name: _read_idx(_the_one(folder, name, found.get(name, [])), DIMENSIONS[name[0]]) for name in FILES}


def _found(folder: Path) -> dict[str, list[Path]]:
    """The candidates for each of the four files."""
    found: dict[str, list[Path]] = {}
    for path in sorted((*folder.glob("*"), *folder.glob("*/*"))):
        match = _NAME.fullmatch(path.name)
        if match is not None and path.is_file():
            part = "train" if match[1].lower() == "train" else "test"
            found.setdefault(f"{'x' if match[2].lower() == 'images' else 't'}_{part}", []).append(path)
    return found


def _the_one(folder: Path, name: str, paths: list[Path]) -> Path:
    """Choose a candidate: the published name before others, a file before its .gz. Raise DatasetError."""
    published = [path for path in paths if path.parent == folder and path.name.removesuffix(".gz") == FILES[name]]
    candidates = published or paths
    if candidates and len({path.with_name(path.name.removesuffix(".gz")) for path in candidates}) == 1:
        return min(candidates, key=lambda path: len(path.name))
    if candidates:
        several = ", ".join(str(path.relative_to(folder)) for path in candidates[:SHOWN])
        raise DatasetError(f"{folder}: several files may be {FILES[name]}: {several}; keep those of one dataset there")
    raise DatasetError(
        f"{folder}: neither {FILES[name]} nor {FILES[name]}.gz is there, but {contents(folder)}; an IDX dataset is "
        f"the four files {', '.join(FILES.values())}, or one file {folder.name}.npz beside the folder"
        f"{advice(folder.name, folder)}"
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
    """The bytes, unpacked if they are gzip, whatever the name: browsers unpack a .gz and keep its name."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP) else content
    except (OSError, EOFError, zlib.error) as broken:
        raise DatasetError(f"{path}: cannot be read ({broken}); fetch it again") from broken
