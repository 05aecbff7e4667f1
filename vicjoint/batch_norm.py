"""Batch norm over the global batch: on several processes the statistics of one with all rows.

torch.nn.SyncBatchNorm does this for GPUs alone; here are the same two exchanges for any device (forward: each
process's count, means and variances; backward: two sums per channel).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vicjoint import distributed


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with its batch norms over the global batch, parameters and buffers shared: changed in place, or
    another module where the model is a batch norm itself."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if isinstance(model, _BatchNorm):
        return GlobalBatchNorm(model)
    for name, child in model.named_children():
        setattr(model, name, synchronised(child, device))
    return model


class GlobalBatchNorm(_BatchNorm):
    """`norm` (BatchNorm1d, 2d or 3d) with mean and variance of all processes' rows, any number on each."""

    def __init__(self, norm: _BatchNorm):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias, self.training = norm.weight, norm.bias, norm.training
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(self, name, buffer)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        y, mean, variance, rows = Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.training and self.running_mean is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (rows / (rows - 1)), share)
        return y

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the norm that this one stands for was built for its input


class Normalise(torch.autograd.Function):
    """x [n, C, ...] -> (y like x, mean [C], biased variance [C], rows in all). Each process's gradients of
    weight and bias are those of its own rows, as DistributedDataParallel wants them."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        variance, mean = torch.var_mean(x.to(at_least_float(x)), [0, *range(2, x.dim())], correction=0)
        rows = torch.full_like(mean, x.numel() // x.shape[1])
        own = torch.stack([rows, mean, variance])[None].double()
        rows, means, variances = distributed.gather(own, [1] * distributed.world_size()).unbind(1)
        everyone = float(rows.sum(0)[0])
        if everyone < 2:
            raise ValueError(f"batch norm needs more than one value per channel, got {list(x.shape)}")
        mean = (rows * means).sum(0) / everyone
        variance = (rows * (variances + (means - mean).square())).sum(0) / everyone
        mean, variance = mean.to(at_least_float(x)), variance.to(at_least_float(x))
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.rows, ctx.eps = everyone, eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, everyone

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor, *_):
        x, weight, mean, variance = ctx.saved_tensors
        # as if mean and variance were constants, then what flows through them
        dx, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            dy.contiguous(), x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sum_dy, sum_dy_normed = distributed.total(torch.stack([of_bias, of_weight]))
        inverse = (variance + ctx.eps).rsqrt()
        scale = inverse / ctx.rows if weight is None else inverse * weight / ctx.rows
        channel = [1, -1] + [1] * (x.dim() - 2)
        slope, shift = (scale * inverse * sum_dy_normed).view(channel), (scale * sum_dy).view(channel)
        dx = dx - ((x - mean.view(channel)) * slope + shift).to(dx.dtype)
        if weight is None:
            of_weight = of_bias = None
        return dx, of_weight, of_bias, None


def at_least_float(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
