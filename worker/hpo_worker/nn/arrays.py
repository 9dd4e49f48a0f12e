"""The array types of this package."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]
Dtype = type[np.float32] | type[np.float64]
