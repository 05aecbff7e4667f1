"""The gradient of one batch, whole or in parts.

In parts (`train.accumulate` above 1) the objective's statistics would be those of a part. With `train.exact`
they are those of the whole batch, in two passes (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch
Size under Memory Limited Setup"):

1. embed every part without a graph, and take the objective's gradient with respect to all embeddings
   together;
2. embed each part again, with a graph, and send its share of that gradient back.

The gradient is that of one large batch, for one more forward pass; memory is that of a part. Batch norm
inside the encoders still sees parts.
"""

import contextlib

import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils._pytree import tree_leaves, tree_map

from vicjoint.batch import Batch, z_of
from vicjoint.parts import Objective
from vicjoint.recipe.keys import Train


def backward(
    forward, objective: Objective, batch: Batch, options: Train, number: int = 0, gradient_b: bool = True
):
    """Adds the batch's gradient to the parameters of `forward` (the model) and `objective`. Returns (loss,
    terms, embeddings (z_a, z_b) of the whole batch, or of the last part where parts have statistics of their
    own). `options`: the recipe's `train`. `number`: the task's. `gradient_b`: False where branch b follows
    another, or is frozen.
    """
    parts = batch.split(options.accumulate)
    device = next(forward.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")
    if len(parts) > 1 and options.exact:
        return in_two_passes(forward, objective, parts, autocast, gradient_b, number, device)
    total, sums = 0.0, {}
    for part, last in mark_last(parts):
        with contextlib.nullcontext() if last else unsynchronised(forward):
            with autocast:
                z_a, z_b = forward(part.a, part.b, number)
            with record_function("objective"):
                loss, terms = objective(z_a, z_b, part.row_groups())
            with record_function("backward"):
                (loss / len(parts)).backward()
        total = total + loss.detach() / len(parts)
        sums = {name: sums.get(name, 0.0) + value / len(parts) for name, value in terms.items()}
    return total, sums, (z_of(z_a).detach(), z_of(z_b).detach())


def in_two_passes(forward, objective, parts: list[Batch], autocast, gradient_b: bool, number: int, device):
    states, embedded = [], []
    with torch.no_grad(), unchanged_buffers(forward):
        for part in parts:
            states.append(random_state(device))
            with autocast:
                embedded.append(forward(part.a, part.b, number))
    z_a, z_b = (tree_map(lambda *of_parts: torch.cat(of_parts), *z) for z in zip(*embedded))
    group = torch.cat([part.row_groups() for part in parts])
    seen = [x.requires_grad_() for x in tree_leaves(z_a)]
    seen += [x.requires_grad_(gradient_b) for x in tree_leaves(z_b)]
    with record_function("objective"):
        loss, terms = objective(z_a, z_b, group)
        loss.backward()

    # several rows a sample where branch a sees several crops, or b several targets
    sizes = [len(tree_leaves(z_a)[0]) for z_a, _ in embedded]
    shares = zip(*([None] * len(parts) if x.grad is None else x.grad.split(sizes) for x in seen))
    for (part, last), state, shares_of_part in zip(mark_last(parts), states, shares):
        set_random_state(device, state)  # the same dropout as in the first pass
        with contextlib.nullcontext() if last else unsynchronised(forward):
            with autocast:
                again = tree_leaves(forward(part.a, part.b, number))
            trained = [(x, share) for x, share in zip(again, shares_of_part) if x.requires_grad]
            with record_function("backward"):
                torch.autograd.backward(*zip(*trained))
    return loss.detach(), terms, (z_of(z_a).detach(), z_of(z_b).detach())


def mark_last(parts: list) -> list[tuple]:
    return [(part, i == len(parts) - 1) for i, part in enumerate(parts)]


def unsynchronised(forward):
    """Gradients of all but the last part stay on their process: one exchange a batch."""
    return forward.no_sync() if hasattr(forward, "no_sync") else contextlib.nullcontext()


@contextlib.contextmanager
def unchanged_buffers(forward):
    """Running statistics of batch norms count a part once, in the second pass."""
    before = [(buffer, buffer.clone()) for buffer in forward.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


def random_state(device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
