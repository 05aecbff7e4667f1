"""How the model is spread over processes: `train.parallel: ddp | fsdp`, `train.checkpoint_activations` and
`train.compile`.

    shard(parts)                    # before a checkpoint is loaded: fsdp on several processes
    forward = wrap(parts)           # what the loop calls
    with whole(parts.model): ...    # every process has all weights, as an evaluation needs them

ddp: each process holds weights, gradients and the optimizer's state. fsdp (FSDP2, `fully_shard`): each holds
its share of every tensor's first dimension, and a unit's weights are whole while it computes. Units are the
blocks of an encoder, then each encoder, expander and predictor, then the model with what is left.
"""

import contextlib
import functools
import random
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from vicjoint import distributed
from vicjoint.batch_norm import synchronised
from vicjoint.model import Model, count_parameters
from vicjoint.training.build import Parts, build_optimizer

LEAST = 100_000  # parameters of a block from which an exchange of its own is worth it


def wrap(parts: Parts) -> nn.Module:
    """The model as the loop calls it, with two views and the number of their task: compiled, its activations
    computed again, and distributed where asked for."""
    model, options, sharded = parts.model, parts.recipe.train, is_sharded(parts.model)
    several = distributed.world_size() > 1
    if several and not sharded and options.sync_batch_norm:
        model = synchronised(model, parts.device)
    # what runs between two pieces, hooks of fsdp and a second forward pass, is not for the compiler
    by_piece = options.compile and (sharded or options.checkpoint_activations)
    for piece in pieces(model):
        if by_piece:
            piece.forward = torch.compile(piece.forward)
        if options.checkpoint_activations:
            piece.forward = computed_again(piece)
    if sharded:
        return model
    forward = model
    if several:
        # branches without a part in a step get no gradient, and the optimizer leaves them as they are, as on
        # one process
        of_cells = any(branch.local_expander is not None for branch in model.branches.values())
        idle = any({t.spec.a, t.spec.b} != set(model.branches) for t in parts.tasks)
        idle = idle or (of_cells and len(parts.tasks) > 1)
        devices = [parts.device.index] if parts.device.type == "cuda" else None
        forward = DistributedDataParallel(model, device_ids=devices, find_unused_parameters=idle)
    return torch.compile(forward) if options.compile and not by_piece else forward


# ---- fsdp ----


def shard(parts: Parts) -> None:
    """With `train.parallel: fsdp` on several processes, let each keep its share of the model, and of the
    untrained one, with a new optimizer of what it has. Every process has built both whole before."""
    options = parts.recipe.train
    if options.parallel != "fsdp" or distributed.world_size() == 1:
        return
    if options.sync_batch_norm:
        synchronised(parts.model, parts.device)
    for model in (parts.model, parts.untrained):
        _shard(model, parts.device)
    parts.optimizer = build_optimizer(parts.recipe, parts.model, parts.tasks)


def _shard(model: Model, device: torch.device) -> None:
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    single = {p for p in model.parameters() if p.ndim == 0}  # nothing to share out
    for unit in (*units(model), model):
        fully_shard(unit, mesh=mesh, ignored_params=single)
    for branch in model.branches.values():
        if branch.local_expander is not None:  # then this is what its forward pass calls
            register_fsdp_forward_method(branch.encoder, "forward_both")
    for p in single:
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(average_gradient)
    # now: else the first part that is called without the others would take itself for the root
    model._get_fsdp_state()._lazy_init()


def average_gradient(p: Tensor) -> None:
    """What was there before is the same on all processes, and so is the mean's."""
    distributed.total(p.grad).div_(distributed.world_size())


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@contextlib.contextmanager
def whole(*models: nn.Module) -> Iterator[None]:
    """Inside, each process has all weights of the models and may call what it likes of them, as often as it
    likes; on all processes at once. Nothing to do where they are not sharded."""
    found = [module for model in models for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        for module in found:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        yield
    finally:
        for module in found:
            module.set_reshard_after_forward(module not in models, recurse=False)
            module.reshard()


def units(model: Model) -> list[nn.Module]:
    """What is exchanged by itself, inner ones first. A weight that is used outside of a unit too is left to
    the next larger one."""
    found = []
    for branch in model.branches.values():
        found += [block for block in blocks(branch.encoder) if count_parameters(block) >= LEAST]
        found += [branch.encoder, *branch.expanders()]
    found += [part for part in (model.predictor, model.prior) if part is not None]
    uses = count_uses(model)
    within = {unit: count_uses(unit) for unit in found}  # one that two branches share stands here once
    return [
        unit
        for unit, own in within.items()
        if own and not isinstance(unit, CALLED_BY_PART) and all(uses[p] == own[p] for p in own)
    ]


def count_uses(module: nn.Module) -> Counter:
    """{parameter: in how many places of the module it stands}."""
    return Counter(p for m in module.modules() for p in m.parameters(recurse=False))


# ---- parts of the model ----

CALLED_BY_PART = nn.ModuleList, nn.ModuleDict  # they have no forward pass


def pieces(model: Model) -> list[nn.Module]:
    """What is compiled, or computed again, by itself: the blocks of encoders, encoders without blocks,
    expanders, the predictor."""
    found = []
    for branch in model.branches.values():
        found += [*(blocks(branch.encoder) or [branch.encoder]), *branch.expanders()]
    found += [part for part in (model.predictor, model.prior) if part is not None]
    return list(dict.fromkeys(found))  # one that two branches share once


def blocks(module: nn.Module) -> list[nn.Module]:
    """Of a module, what stands in lists and sequences and has parts of its own: a transformer's layers, the
    residual blocks of a net. A sequence of blocks is looked into; blocks are not."""
    found = []
    for child in module.children():
        in_a_row = isinstance(module, nn.Sequential | nn.ModuleList) and has_parts(child)
        if in_a_row and not is_a_row_of_blocks(child):
            found.append(child)
        else:
            found += blocks(child)
    return found


def is_a_row_of_blocks(module: nn.Module) -> bool:
    if isinstance(module, CALLED_BY_PART):
        return True
    return isinstance(module, nn.Sequential) and any(map(has_parts, module))


def has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


# ---- activations ----


def computed_again(module: nn.Module):
    """The forward pass of a module that keeps its input alone, and runs again in the backward pass: the same
    numbers, for less memory and one more pass."""
    forward = module.forward

    def run(*given, **named):
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        again = functools.partial(forward, **named)
        return checkpoint(again, *given, use_reentrant=False, context_fn=lambda: second_pass(module))

    return run


def second_pass(module: nn.Module):
    """(context of the first pass, of the second): the second draws the same random numbers of numpy and
    Python as the first (torch's are `checkpoint`'s), and leaves running statistics as they are."""
    drawn = np.random.get_state(), random.getstate()

    @contextlib.contextmanager
    def second():
        before = np.random.get_state(), random.getstate()
        kept = [(m, name, b) for m in module.modules() for name, b in m.named_buffers(recurse=False)]
        try:
            set_random(drawn)
            for m, name, buffer in kept:
                setattr(m, name, buffer.clone())
            yield
        finally:  # it is left by an exception once all is there
            for m, name, buffer in kept:
                setattr(m, name, buffer)
            set_random(before)

    return contextlib.nullcontext(), second()


def set_random(states: tuple) -> None:
    np.random.set_state(states[0])
    random.setstate(states[1])


# ---- gradients ----


def plain_beside_shares(model: nn.Module):
    """Inside, a flag that each process has may stand beside its shares."""
    return implicit_replication() if is_sharded(model) else contextlib.nullcontext()


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Norm of all gradients together, shares of all processes included."""
    norms = [distributed.whole(nn.utils.get_total_norm(some)) for some in by_kind(gradients)]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Iterable[Tensor], most: float) -> None:
    """Scale the gradients so that their norm is at most `most`."""
    trained = [p for p in parameters if p.grad is not None]
    norm = gradient_norm(p.grad for p in trained)
    for some in by_kind(trained):
        nn.utils.clip_grads_with_norm_(some, most, norm)


def by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Shares and whole tensors apart, which torch does not mix; one list at least."""
    tensors = list(tensors)
    shares = [x for x in tensors if isinstance(x, DTensor)]
    others = [x for x in tensors if not isinstance(x, DTensor)]
    return [some for some in (shares, others) if some] or [[]]
