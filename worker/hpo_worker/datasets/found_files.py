"""For error messages: what lies where a dataset was looked for, and how to turn it into one that can be read."""

from __future__ import annotations

import difflib
from pathlib import Path

SHOWN = 8

# As "Deep Learning from Scratch" names its arrays. Nothing here unpickles: a pickle can run code.
_CONVERSION = (
    "{0} is a pickle, which is not read since it can run code; if you trust who made it, convert it: "
    "python -c \"import pickle, numpy; d = pickle.load(open('{0}', 'rb')); numpy.savez('{1}.npz', "
    "x_train=d['train_img'], t_train=d['train_label'], x_test=d['test_img'], t_test=d['test_label'])\""
)
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".7z")


def contents(folder: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir()) if folder.is_dir() else []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "nothing"


def advice(name: str, folder: Path) -> str:
    """How to turn a file that is there into the dataset of this name; empty if none looks like it."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    mine = folder.name == name
    for file in there:
        stem, _, ending = file.partition(".")
        if not mine and stem != name:
            continue
        if ending in ("pkl", "pickle"):
            return "; " + _CONVERSION.format(file, name)
        if file.endswith(_PACKED):
            return f"; unpack {file} into the folder {name}/"
        if mine and ending == "npz":
            return f"; move {file} out of the folder, to {name}.npz, and take the folder away"
    stems = {file.removesuffix(".npz"): file for file in there}
    near = difflib.get_close_matches(name.lower(), {stem.lower() for stem in stems}, n=1)
    return "".join(f"; did you mean {file}?" for stem, file in stems.items() if stem.lower() in near and not mine)
