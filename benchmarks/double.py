"""A recipe with `imports: [benchmarks.double]` trains in float64: parameters are made so, and what goes into
a module is brought to it."""

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

torch.set_default_dtype(torch.float64)


def _wide(module: torch.nn.Module, given: tuple) -> tuple:
    return tuple(x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in given)


register_module_forward_pre_hook(_wide)
