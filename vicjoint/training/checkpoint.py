"""Checkpoints: a folder step_<step>/ with everything a run needs to go on. It is whole or absent, and it
never holds code.

    model.safetensors      the model's state, an ema branch's too
    training.safetensors   every other tensor: the optimizer's and the objectives'
    state.json             the plain values, with the names of tensors in their places
    shards/                with fsdp, tensors that processes share: a safetensors file each, which
                           torch.distributed.checkpoint writes and reads; the others are where they always are
    manifest.json          bytes and CRC-32 of all other files, by which a damaged checkpoint is known

It is written under a temporary name; files, and the folder, are synchronised with the disk before it gets its
own.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from vicjoint.training import shards

FORMAT = 1
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
FILES = ("model.safetensors", "training.safetensors", "state.json")
TEMPORARY = ".tmp"
TENSOR, ITEMS, TUPLE = "__tensor__", "__items__", "__tuple__"  # in state.json: what JSON has no form for


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or used; the message names it and says why."""


# ---- writing ----


def save(folder: Path, step: int, state: dict, keep: int, best: int | None = None) -> Path:
    """Write `state` (tensors, plain values, and dicts, lists and tuples of them; the model's under "model")
    as folder/step_<step>, then delete all but the newest `keep` and step `best`. Raises CheckpointError where
    it cannot be written: nothing else has changed then.
    """
    path = path_of(folder, step)
    temporary = temporary_of(path)
    try:
        begin(temporary)
        write(temporary, step, taken_apart(state))
        put_in_place(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # first: its room counts below
        raise CheckpointError(unwritable(path, taken_apart(state).bytes, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    forget(folder, keep, best)
    return path


@dataclass
class Taken:
    """A state taken apart: plain values as JSON holds them, and tensors by the names that stand in their
    places."""

    plain: dict
    model: dict[str, Tensor]
    training: dict[str, Tensor]

    @property
    def shares(self) -> dict[str, DTensor]:
        """Those of which each process has a part."""
        found = self.model | self.training
        return {name: x for name, x in found.items() if isinstance(x, DTensor)}

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for tensors in (self.model, self.training) for x in tensors.values())

    def copied_rest(self) -> "Taken":
        """Without the shares, in tensors that nothing else changes."""
        copied = [
            {name: x.clone() for name, x in tensors.items() if not isinstance(x, DTensor)}
            for tensors in (self.model, self.training)
        ]
        return Taken(self.plain, *copied)


def taken_apart(state: dict) -> Taken:
    names: dict[tuple, str] = {}
    model, training = {}, {}
    plain = {
        "model": encode(state["model"], "", model, names),
        **{key: encode(value, key, training, names) for key, value in state.items() if key != "model"},
    }
    return Taken(plain, model, training)


def begin(temporary: Path) -> None:
    """An empty folder to write in."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()


def write(folder: Path, step: int, taken: Taken, shards: dict[str, dict] | None = None) -> None:
    """`shards`: the manifest's entries of files that are there already."""
    texts = as_safetensors(taken.model), as_safetensors(taken.training), [json.dumps(taken.plain).encode()]
    files = {name: write_file(folder / name, blocks) for name, blocks in zip(FILES, texts)}
    (folder / "manifest.json").write_text(
        json.dumps({"format": FORMAT, "step": step, "files": files | (shards or {})}, indent=1),
        encoding="utf-8",
    )
    for path in folder.iterdir():
        synchronise(path)
    synchronise(folder)


def put_in_place(temporary: Path, path: Path) -> None:
    if path.exists():  # one that a resumed run could not use
        remove(path)
    os.replace(temporary, path)
    synchronise(path.parent)


def forget(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` and step `best`."""
    for old in steps(folder)[:-keep]:
        if old != best:
            remove(path_of(folder, old))


def write_file(path: Path, blocks: Iterable) -> dict[str, int]:
    """Write blocks of bytes one after the other; returns the manifest's entry."""
    size = crc32 = 0
    with open(path, "wb") as file:
        for block in blocks:
            file.write(block)
            size, crc32 = size + memoryview(block).nbytes, zlib.crc32(block, crc32)
    return {"bytes": size, "crc32": crc32}


def as_safetensors(tensors: dict[str, Tensor]) -> Iterator:
    """A safetensors file block by block: the length of the header, the header, the tensors. safetensors' own
    writer gives the same file, but takes more than twice as long, and the checksum would have to read it
    again."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        if tensor.nbytes:
            yield tensor.reshape(-1).view(torch.uint8).numpy()


def encode(value, name: str, tensors: dict[str, Tensor], names: dict[tuple, str]):
    """`value` as JSON can hold it. Its tensors go into `tensors` by their place in it; one that occurs twice
    (shared weights) is written once. Raises TypeError for what is neither a tensor nor plain."""
    if isinstance(value, Tensor):
        own = place_of(value) or (name,)
        if names.setdefault(own, name) == name and isinstance(value, DTensor):
            tensors[name] = value.detach()
        elif names[own] == name:
            value = value.detach().cpu().contiguous()
            # a part of a larger storage would bring all of it
            tensors[name] = value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
        return {TENSOR: names[own]}
    inner = lambda key, v: encode(v, f"{name}.{key}" if name else str(key), tensors, names)
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: inner(key, v) for key, v in value.items()}
        return {ITEMS: [[key, inner(key, v)] for key, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [inner(i, v) for i, v in enumerate(value)]
        return {TUPLE: items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values; {name} is of type {type(value).__name__}.")


def place_of(tensor: Tensor) -> tuple | None:
    """What two names of one tensor have in common; None where it takes no memory. Of a share it is the same
    on every process that two names have one: fsdp gives memory to empty shares of weights, too."""
    x = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    memory = x.untyped_storage().data_ptr()
    return (
        (memory, x.storage_offset(), tensor.shape, x.stride(), x.dtype) if memory and tensor.numel() else None
    )


def unwritable(path: Path, size: int, error: Exception | str) -> str:
    """`size`: bytes of the tensors."""
    try:
        free = f"{shutil.disk_usage(path.parent).free / 2**20:.0f} MiB are free there"
    except OSError:
        free = "what is free there is not known"
    there = steps(path.parent)
    before = f"The one of step {there[-1]} is as it was" if there else "There is none before it"
    return (
        f"checkpoint {path} cannot be written: {error}. It needs about {size / 2**20:.0f} MiB, and {free}."
        f" {before}. Make room (or lower checkpoint.keep in a new run), then give the same command again to"
        " go on."
    )


def remove(path: Path) -> None:
    """Under a temporary name first, so that no half of a checkpoint bears a checkpoint's name."""
    temporary = path.with_name(path.name + ".old" + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    os.replace(path, temporary)
    shutil.rmtree(temporary)


def synchronise(path: Path) -> None:
    """Wait until a file's data, or a folder's names, are on the disk. Windows opens no folder for that, and a
    file only to write."""
    if os.name == "nt" and path.is_dir():
        return
    number = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


# ---- reading ----


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def temporary_of(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    found = (re.fullmatch(r"step_(\d+)", p.name) for p in folder.glob("step_*"))
    return sorted(int(m.group(1)) for m in found if m)


def load(path: Path) -> dict:
    """The state of one checkpoint, tensors on the CPU. Raises CheckpointError where it is not what was
    written."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {path} cannot be used: it has format {manifest['format']}, and this version"
                f" reads {FORMAT}."
            )
        shared = [name for name in manifest["files"] if name.startswith(f"{shards.FOLDER}/")]
        for name in (*FILES, *shared):
            given = manifest["files"][name]
            if (path / name).stat().st_size != given["bytes"]:
                raise CheckpointError(
                    f"checkpoint {path} cannot be used: {name} has {(path / name).stat().st_size} bytes of"
                    f" {given['bytes']}."
                )
            if shards.checksum(path / name) != given["crc32"]:
                raise CheckpointError(
                    f"checkpoint {path} cannot be used: {name} is damaged (its checksum differs)."
                )
        tensors = read_tensors(path / "training.safetensors") | read_tensors(path / "model.safetensors")
        tensors |= shards.read(path / shards.FOLDER) if shared else {}
        state = decode(json.loads((path / "state.json").read_text(encoding="utf-8")), tensors)
        if state["step"] != manifest["step"] or path.name != path_of(path.parent, state["step"]).name:
            raise CheckpointError(
                f"checkpoint {path} cannot be used: its name and its content (step {state['step']}) differ."
            )
        return state
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be used ({type(error).__name__}: {error})."
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # a name that is not UTF-8, by which safetensors opens no file
        return load_bytes(path.read_bytes())
    return load_file(path)


def decode(value, tensors: dict[str, Tensor]):
    if isinstance(value, list):
        return [decode(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return tensors[value[TENSOR]].clone()  # not a window on the file, which may be deleted
    if TUPLE in value:
        return tuple(decode(v, tensors) for v in value[TUPLE])
    if ITEMS in value:
        return {key: decode(v, tensors) for key, v in value[ITEMS]}
    return {key: decode(v, tensors) for key, v in value.items()}


def load_last(folder: Path, refuse: Callable[[dict], str | None] = lambda state: None) -> dict | None:
    """The newest checkpoint that can be used, or None where there is none at all. One that is damaged, or
    that `refuse` has a reason against, is named on the terminal, and the one before it is taken. Raises
    CheckpointError where none of those that exist can be used.
    """
    found = steps(folder)
    for step in reversed(found):
        try:
            state = load(path_of(folder, step))
            if not (reason := refuse(state)):
                return state
            print(f"checkpoint {path_of(folder, step)} cannot be used: {reason}")
        except CheckpointError as error:
            print(error)
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {folder} can be used (see above). "
            "Put a copy of one there; or delete the run folder to start again from the first step."
        )
    return None


def tidy(folder: Path, step: int) -> None:
    """Before a run goes on from a step: delete what a killed process left half done, and give later
    checkpoints, which could not be used, a name that ends in .refused."""
    for path in folder.glob(f"step_*{TEMPORARY}"):
        shutil.rmtree(path, ignore_errors=True)
    for later in (s for s in steps(folder) if s > step):
        path = path_of(folder, later)
        aside = path.with_name(path.name + ".refused")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
