"""An encoder as a program that needs no code of this project: ONNX, or PyTorch's own (torch.export). Raw view
(uint8 pixels, ...) -> y, normalisation included, any number of samples.

    view = {"shape": [3, 64, 64], "dtype": "uint8"}
    print(write(encoder, Path("model.onnx"), "onnx", view, "encoder 'conv'"))

What is written is run at once, and has to give what the encoder gives.
"""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vicjoint.recipe import RecipeError
from vicjoint.registry import need

Format = Literal["onnx", "pt2"]
ALLOWED = 1e-4  # largest difference of y, as a share of its largest value
TRACED = 2  # samples of the view that a program is made from
TRIED = (1, 2, 5)  # samples that it is checked with
MOST_WORDS = 300  # characters of a cause
HINT = re.compile(r"For more information, run with TORCH_LOGS=\S+\s*")  # no use to the reader of one line


def write(encoder: nn.Module, to: Path, format: Format, view: dict[str, Any], what: str) -> str:
    """Write the program and give a line about its check. view: `shape` and `dtype` of a raw view without the
    dimension of samples. what: names the encoder in messages. Raises RecipeError where torch cannot, or
    where the program gives something else."""
    if "shape" not in view:
        raise RecipeError(
            f"--format {format}: {what}: its views are not one tensor of one shape. Expected an encoder of"
            " images, clips or sounds; export this one in the default format."
        )
    need(["onnx", "onnxscript", "onnxruntime"] if format == "onnx" else [], "--format onnx", "onnx")
    try:
        with quietly():
            program = traced(encoder, view)
            run = write_onnx(program, to, view) if format == "onnx" else write_pt2(program, to)
            differences = [compare(encoder, run, sample(view, count)) for count in TRIED]
    except Exception as error:  # torch and its libraries fail in many ways, and all mean the same to the user
        raise RecipeError(
            f"--format {format}: {what} cannot be written as a program: {cause(error)}. Export it in the"
            " default format, or change what its forward does."
        ) from error
    worst, most = max(differences)
    if worst > ALLOWED * most:
        raise RecipeError(
            f"--format {format}: {what}: the program gives another y, by {worst:.1e} where the largest value"
            f" is {most:.3g}. Allowed is {ALLOWED:g} of it. Export it in the default format."
        )
    where = "onnxruntime" if format == "onnx" else "the loaded program"
    return (
        f"y is that of the encoder within {worst:.1e} (largest value {most:.3g}, allowed {ALLOWED:g} of it),"
        f" batches of {', '.join(map(str, TRIED))} in {where}"
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Without what torch and its libraries say of themselves."""
    before, fast = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    try:
        logging.disable(logging.CRITICAL)
        torch.backends.mha.set_fastpath_enabled(False)  # one operation of torch's own for a whole layer
        aside = io.StringIO()  # where tracing fails torch prints the whole graph
        with warnings.catch_warnings(), redirect_stdout(aside), redirect_stderr(aside):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        logging.disable(before)


def sample(view: dict[str, Any], count: int) -> Tensor:
    """Noise in the place of a raw view."""
    generator = torch.Generator().manual_seed(count)
    shape, dtype = (count, *view["shape"]), getattr(torch, view["dtype"])
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return (0.1 * torch.randn(shape, generator=generator)).to(dtype)


def traced(encoder: nn.Module, view: dict[str, Any]) -> torch.export.ExportedProgram:
    """With a free number of samples. Where Python's own steps fix that number, such as len(view), torch's
    compiler (strict) looks through them."""
    given, dynamic = (sample(view, TRACED),), ({0: torch.export.Dim("batch")},)
    errors = []
    for strict in (False, True):
        try:
            return torch.export.export(encoder, given, dynamic_shapes=dynamic, strict=strict)
        except Exception as error:  # as in write
            errors.append(error)
    raise errors[0]  # it says more of the encoder than what stops the compiler


Run = Callable[[Tensor], Tensor]


def write_pt2(program: torch.export.ExportedProgram, to: Path) -> Run:
    torch.export.save(program, to)
    return torch.export.load(to).module()


def write_onnx(program: torch.export.ExportedProgram, to: Path, view: dict[str, Any]) -> Run:
    import onnxruntime

    given = (sample(view, TRACED),)
    made = torch.onnx.export(
        program,
        given,
        dynamo=True,
        verbose=False,
        input_names=["view"],
        output_names=["y"],
        dynamic_shapes=({0: "batch"},),
    )
    assert made is not None  # with dynamo
    made.save(to)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(to, options, providers=["CPUExecutionProvider"])
    return lambda raw: torch.from_numpy(session.run(["y"], {"view": raw.numpy()})[0])


@torch.no_grad()
def compare(encoder: nn.Module, run: Run, raw: Tensor) -> tuple[float, float]:
    """(largest difference, largest value) of y; a value that is not finite counts as infinitely far."""
    y, other = encoder(raw), run(raw)
    if y.shape != other.shape:
        raise ValueError(f"y has shape {list(y.shape)}, that of the program {list(other.shape)}")
    far = (y - other).abs().nan_to_num(torch.inf)
    return float(far.max()), float(y.abs().max())


def cause(error: BaseException) -> str:
    """The first two lines of what is at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in HINT.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:MOST_WORDS].rstrip(".")
