"""Tensors that processes share, in a folder of a checkpoint: torch.distributed.checkpoint writes a
safetensors file for each process, and reads them on any number of processes. No pickle."""

import warnings
import zlib
from concurrent.futures import Future
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from vicjoint import distributed

FOLDER = "shards"


def write(folder: Path, tensors: dict[str, DTensor], group: ProcessGroup | None) -> Future:
    """Start writing on all processes at once; the tensors may change once this returns. `group`: for what the
    processes have to say to each other meanwhile. The future raises OSError, on every process, where one of
    them could not write."""
    import torch.distributed.checkpoint as dcp  # here: it is not there on Windows
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    return dcp.async_save(tensors, storage_writer=writer, process_group=group)


def finished(writing: Future) -> None:
    """Wait. Raises OSError, on every process, where one of them could not write."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        writing.result()
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise cause if isinstance(cause, OSError) else OSError(f"{type(cause).__name__}: {cause}") from None


def own_files(folder: Path) -> dict[str, dict[str, int]]:
    """The manifest's entries of what this process has written."""
    found = folder.glob(f"shard-{distributed.rank() + 1:05d}-*.safetensors")
    return {f"{FOLDER}/{path.name}": entry(path) for path in found}


def entry(path: Path) -> dict[str, int]:
    return {"bytes": path.stat().st_size, "crc32": checksum(path)}


def checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value


def read(folder: Path) -> dict[str, Tensor]:
    """Every tensor, whole. Raises OSError where the files do not fit together."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(folder))
    about = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(of.size, dtype=of.properties.dtype) for name, of in about.items()}
    try:
        with warnings.catch_warnings():  # it says that it loads on one process
            warnings.simplefilter("ignore")
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise OSError(f"{type(cause).__name__}: {cause}") from None
    return tensors
