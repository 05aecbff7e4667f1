"""What a piece of a step takes: bytes that it holds at once, bytes that it receives, operations.

with Ledger(device) as ledger:
    loss.backward()
ledger.peak, ledger.received, ledger.operations
"""

import weakref
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from vicjoint import distributed
from vicjoint.batch import Boxed, Following

# c10d's operator: (name, which argument has the size, how often it comes by in a ring of all processes)
COLLECTIVES = {
    "allreduce_": ("all_reduce", 0, 2),
    "allgather_": ("all_gather", 0, 1),
    "_allgather_base_": ("all_gather", 0, 1),
    "alltoall_base_": ("all_to_all", 0, 1),
    "broadcast_": ("broadcast", 0, 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1, 1),
}
# what torch's own table leaves out
IN_PLACE = {torch.ops.aten.addmm_: lambda _, a, b, *rest, **options: 2 * a[0] * a[1] * b[1]}


class Ledger(TorchDispatchMode):
    """held, peak: bytes of tensors made since it began that are there, and that were there at once (on a GPU
    all that its allocator gave). received: {collective: bytes that a process receives}. operations: of
    matrix products and convolutions; a multiplication and an addition are two."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.received = device, Counter()
        self._held = self._peak = 0
        self._known = WeakIdKeyDictionary()
        self._counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        self._counter.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._counter.__exit__(*error)
        self.peak, self.operations = self._most(), self._counter.get_total_flops()

    @property
    def held(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) - self._before
        return self._held

    def _most(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return self._peak

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given, kwargs = {id(x): x for x in storages((args, kwargs))}, kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace == "c10d" and func._opname in COLLECTIVES:
            name, place, times = COLLECTIVES[func._opname]
            others = 1 - 1 / distributed.world_size()
            self.received[name] += times * others * size_of(tree_iter(args[place]))
        for storage in storages(result):
            if id(storage) not in given and storage not in self._known:
                self._known[storage] = True
                self._held += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self._peak = max(self._peak, self._held)
        return result

    def _free(self, size: int) -> None:
        self._held -= size


def storages(tree) -> Iterable[torch.UntypedStorage]:
    return (x.untyped_storage() for x in tree_iter(tree) if isinstance(x, Tensor))


def size_of(things: Iterable) -> int:
    """Bytes of the tensors among things, each storage once; of a sharded tensor, what this process holds."""
    found = {}
    for x in things:
        x = x.view if isinstance(x, Boxed | Following) else x
        if isinstance(x, Tensor):
            x = x.to_local() if isinstance(x, DTensor) else x
            found[x.data_ptr() or id(x)] = x.nbytes
    return sum(found.values())
