"""What an installation takes by extra, in MB and in the milliseconds that an import lasts, from a wheel built here.

    python benchmarks/install_sizes.py [--extras "" server server,plot] [--rounds 5]

Each extra gets an environment of its own; what a new environment brings along itself (pip) is not counted. Imports are
timed in fresh interpreters by turns, less what an interpreter takes that imports nothing, and the median is printed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("", "plot", "parquet", "server", "server,postgres", "all")
IMPORTS = ("hpo_service.client", "hpo_worker.start", "hpo_worker.command", "hpo_service.cli")
NUMPY, OF_THE_ENVIRONMENT = ("numpy",), ("pip", "setuptools")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--extras", nargs="*", default=EXTRAS)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        print(f"the wheel: {wheel.stat().st_size / 1e6:.1f} MB")
        for extra in given.extras:
            site, python = installed(wheel, extra, Path(folder) / f"with {extra or 'nothing'}")
            whole, numpy = size(site), size(site, only=NUMPY)
            print(
                f"[{extra}] {whole / 1e6:.0f} MB, NumPy {numpy / 1e6:.0f} of them, the rest {(whole - numpy) / 1e6:.0f}"
            )
            if not extra:
                for module, milliseconds in import_times(python, given.rounds).items():
                    print(f"  import {module}: {milliseconds:.0f} ms")


def build(folder: Path) -> Path:
    """From a copy, since a build leaves folders behind."""
    source = folder / "source"
    for name in ("hpo_service", "worker"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip(Path(sys.executable), "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source))
    return next(folder.glob("*.whl"))


def installed(wheel: Path, extra: str, folder: Path) -> tuple[Path, Path]:
    """The folder of the packages, and the interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip(python, "install", f"{wheel}[{extra}]" if extra else str(wheel))
    return next((folder / "lib").glob("python*")) / "site-packages", python


def pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "-qq", *arguments], check=True)


def size(site: Path, only: Sequence[str] = ()) -> int:
    """Bytes of the packages as pip leaves them, compiled modules included."""
    return sum(
        file.stat().st_size
        for file in site.rglob("*")
        if file.is_file()
        and not (top := file.relative_to(site).parts[0]).startswith(OF_THE_ENVIRONMENT)
        and (not only or top.startswith(tuple(only)))
    )


def import_times(python: Path, rounds: int) -> dict[str, float]:
    """Milliseconds beyond those of an interpreter that imports nothing."""
    took: dict[str, list[float]] = {name: [] for name in ("sys", *IMPORTS)}
    for _ in range(rounds + 1):
        for name, times in took.items():
            began = time.perf_counter()
            subprocess.run([python, "-c", f"import {name}"], check=True)
            times.append(1000 * (time.perf_counter() - began))
    medians = {name: statistics.median(times[1:]) for name, times in took.items()}  # the first writes compiled modules
    return {name: medians[name] - medians["sys"] for name in IMPORTS}


if __name__ == "__main__":
    main()
