"""Losses whose gradient is known as soon as their value is: computed without autograd's graph, then attached
to the inputs."""

import torch
from torch import Tensor


def check_embeddings(name: str, z_a: Tensor, z_b: Tensor) -> None:
    if z_a.shape != z_b.shape or z_a.ndim != 2:
        raise ValueError(
            f"{name} needs two embeddings of one shape [B, D], got {list(z_a.shape)} and {list(z_b.shape)}."
        )


def wide(z: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32: half precision has too few digits for statistics."""
    return z if z.dtype == torch.float64 else z.float()


def wants_gradient(z: Tensor) -> bool:
    # asked here, outside of the autograd function: inside, needs_input_grad is true under no_grad too
    return z.requires_grad and torch.is_grad_enabled()


def attach(loss: Tensor, *known: tuple[Tensor, Tensor | None]) -> Tensor:
    """`loss` with the gradient given for each (input, gradient); inputs whose gradient is None are left
    out."""
    known = [(x, gradient) for x, gradient in known if gradient is not None]
    if not known:
        return loss
    return _Attached.apply(loss, [gradient for _, gradient in known], *(x for x, _ in known))


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, gradients, *inputs):
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_loss):
        # as it is where nothing is to be scaled; reading that would make a GPU wait
        scaled = (lambda g: g) if not of_loss.is_cuda and of_loss.item() == 1 else (lambda g: g * of_loss)
        # cast after the scale: a loss scale for float16 must not meet values that are rounded to zero already
        return None, None, *(scaled(g).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes))
