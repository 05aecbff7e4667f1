"""How far a recipe's losses on several processes of this machine (gloo) are from those on one.

    python -m benchmarks.processes RECIPE [key=value ...] [--processes 1 2 4] [--steps 50] [--double]

Rounding alone parts two runs, a little more in each step; how far is said too: one process whose two threads
add in another order. --double: in float64 (benchmarks/double.py), where only a difference of method is left.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--double", action="store_true", help="in float64")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        alone = None
        for processes, threads in [(1, 1), (1, 2), *((n, 1) for n in options.processes if n > 1)]:
            out = Path(folder) / f"{processes}_{threads}"
            overrides = [f"train.steps={options.steps}", "evaluate.last=false", f"out={out}"]
            overrides += ["imports=[benchmarks.double]"] * options.double
            train(options.recipe, [*options.overrides, *overrides], processes, threads)
            losses = losses_of(out)
            alone = alone or losses
            far = [abs(a - b) / abs(a) for a, b in zip(alone, losses, strict=True)]
            print(
                f"{processes} processes, {threads} threads: loss {losses[0]:.6f} to {losses[-1]:.6f}; off"
                f" {far[0]:.1e} at step 1, {max(far[:5]):.1e} by step 5, {max(far):.1e} by step {len(far)}",
                flush=True,
            )


def train(recipe: str, overrides: list[str], processes: int, threads: int) -> None:
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [*several, "-m", "vicjoint.run", recipe, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{' '.join(arguments)}:\n{ended.stdout}{ended.stderr}")


def losses_of(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


if __name__ == "__main__":
    main()
