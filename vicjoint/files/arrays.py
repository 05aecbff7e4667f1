"""Arrays of numbers: in a cell, or in a npy, npz or HDF5 file.

read([0.5, 1.5])                  # float64 [2]
read("clip.npy")                  # the array of the file, mapped into memory: only what is used is read
read("clip.npy#12")               # its row 12
read("esm.h5#P12345")             # the array of that key; with #3 behind it, its row 3
read("esm.h5#3", "embeddings")    # row 3 of the array of a key that is given
"""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from vicjoint.files.guard import no_file
from vicjoint.registry import nearest, need

HDF5 = (".h5", ".hdf5", ".he5", ".hdf")
SUFFIXES = (".npy", ".npz", *HDF5)
KINDS = "fiub"  # of numpy: floats, whole numbers, true and false
DAMAGED = (ValueError, OSError, EOFError, KeyError, SyntaxError, RuntimeError, zipfile.BadZipFile)


def read(value: Any, key: str | None = None) -> np.ndarray:
    """The array that a cell holds, or means. key: of the array in a npz or HDF5 file; None: what stands after
    the first # of the path, or the only one. Raises ValueError or OSError."""
    if not isinstance(value, str):
        return numbers(value, "")
    path, *parts = (value,) if os.path.exists(value) else value.split("#")
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{value}: expected a list of numbers, or a file ending in {' '.join(SUFFIXES)}.")
    if cause := no_file(path, "array"):
        raise ValueError(f"{path}: {cause}.")
    if suffix != ".npy" and key is None and parts:
        key, *parts = parts
    with opened(path, suffix, key) as array:
        return numbers(row_of(array, parts, value), f"{value}: ")


@contextlib.contextmanager
def opened(path: str, suffix: str, key: str | None) -> Iterator[Any]:
    """The array of a file, of which nothing need be read yet."""
    if suffix == ".npy":
        yield loaded(path, path, mmap_mode="r")
        return
    if suffix == ".npz":
        with open(path, "rb") as file, loaded(file, path) as archive:
            yield member(archive, path, key)
        return
    (h5py,) = need(["h5py"], f"{path}", "hdf5")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as HDF5: {str(error)[:200]}.") from None
    with file:
        array = member(file, path, key)
        if not isinstance(array, h5py.Dataset):
            raise ValueError(f"{path}: '{key}' is a group of {', '.join(list(array)[:5])}. Name one of them.")
        yield array


def loaded(file: Any, path: str, mmap_mode: Literal["r"] | None = None) -> Any:
    try:
        return np.load(file, mmap_mode, allow_pickle=False)
    except DAMAGED as error:
        kind = os.path.splitext(path)[1].lower()[1:]
        raise ValueError(f"{path}: cannot be read as {kind}: {str(error)[:200]}.") from None


def member(archive: Any, path: str, key: str | None) -> Any:
    """An array of a npz or HDF5 file. Raises ValueError."""
    try:
        if key is not None and key in archive:
            return archive[key]
        names = list(archive)
        if key is None and len(names) == 1:
            return archive[names[0]]
    except DAMAGED as error:
        raise ValueError(f"{path}: is damaged: {str(error)[:200]}.") from None
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if key is None:
        raise ValueError(
            f"{path}: has {len(names)} arrays ({some}). Name one: the modality's key, or {path}#KEY."
        )
    raise ValueError(f"{path}: has no array '{key}'.{nearest(key, names)} It has {some}.")


def row_of(array: Any, parts: list[str], value: str) -> Any:
    """The array, or its row whose number stands in the path. Raises ValueError."""
    if not parts:
        return array[()]
    rows = array.shape[0] if array.ndim else 0
    if len(parts) > 1 or not parts[0].isdigit() or int(parts[0]) >= rows:
        raise ValueError(
            f"{value}: there is no row '{'#'.join(parts)}'; the array is {list(array.shape)}, its rows are"
            " numbered from 0."
        )
    return array[int(parts[0])]


def numbers(found: Any, name: str) -> np.ndarray:
    """An array of numbers. Raises ValueError for anything else."""
    try:
        array = np.asarray(found)
    except ValueError:
        raise ValueError(f"{name}expected numbers, got lists of different lengths.") from None
    if array.dtype == object and not isinstance(found, np.ndarray):  # null in JSON is a missing number
        try:
            array = np.array(found, dtype=np.float64)
        except (TypeError, ValueError):
            pass
    if array.dtype.kind not in KINDS:
        raise ValueError(f"{name}expected numbers, got {str(found)[:50]!r}.")
    return array
