"""python -m benchmarks.checkpoint [--width 8192] [--rounds 3] [--folder FOLDER] [--json FILE]

Seconds to save and to load the state of ResNet-50 with an expander of three layers, and of its LARS
optimizer: vicjoint's checkpoint (safetensors, checksums, all of it on the disk before it counts) beside
torch.save with fsync, in turn.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks.measure import interleaved, table, write
from vicjoint import build_encoder
from vicjoint.model import make_expander
from vicjoint.optim import lars
from vicjoint.training import checkpoint


def trained_state(width: int) -> dict:
    encoder = build_encoder("image", "resnet50")
    model = nn.Sequential(encoder, make_expander(encoder.dim, [width] * 3))
    optimizer = lars(model, 256, lr=0.2)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {"step": 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}


def torch_save(state: dict, path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint", description="Seconds to save and load a large checkpoint."
    )
    parser.add_argument("--width", type=int, default=8192, help="of the expander's layers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    state = trained_state(options.width)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        of_torch, of_vicjoint = folder / "torch.pt", folder / "checkpoints"
        took = interleaved(
            {
                "vicjoint save": lambda: checkpoint.save(of_vicjoint, 1, state, keep=1),
                "torch.save": lambda: torch_save(state, of_torch),
                "vicjoint load": lambda: checkpoint.load(of_vicjoint / "step_00000001"),
                "torch.load": lambda: torch.load(of_torch, weights_only=True),
            },
            seconds=0,
            rounds=options.rounds,
        )
        mib = of_torch.stat().st_size / 2**20
    finally:
        shutil.rmtree(folder)
    rows = [[name, statistics.median(times), min(times), max(times)] for name, times in took.items()]
    print(f"{mib:.0f} MiB\n" + table(["", "median s", "least", "most"], rows))
    write(options.json, {"mib": mib, "seconds": took})


if __name__ == "__main__":
    main()
