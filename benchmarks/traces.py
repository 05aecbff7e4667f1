"""python -m benchmarks.traces --to FILE | --against FILE [RECIPE ...]: what every shipped recipe computes, to
the last bit.

Of each recipe (default: all), 12 steps of its without-data form on one thread: losses and terms as
hexadecimal floats, a hash of each pair's first batch of raw views, the names of its samples, the numbers of
the evaluation, names and shapes of the model's tensors; and what `--list` prints. A refactor proves itself
with equal traces: --to FILE before it, --against FILE after it, on the same machine and with the same cache
folder (sample videos are not the same bytes each time they are made). Exit code 0: equal; 1: something
differs, and the first differences are printed.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
STEPS = 12
TIMES = ("seconds", "waited", "samples_per_second")  # of a line in metrics.jsonl: no two runs have the same
SHOWN = 20  # differences


def trace(name: str) -> dict:
    """{steps, batches, evaluation, state} of one recipe."""
    import vicjoint
    from vicjoint.training import checkpoint

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        overrides = [f"train.steps={STEPS}", "data.workers=0", f"out={folder}/run"]
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            run = vicjoint.train(str(RECIPES / f"{name}.yaml"), overrides)
            batches = first_batches(name, overrides)
        lines = [
            json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
        state = checkpoint.load_last(run / "checkpoints")["model"]
    return {
        "steps": [exact({key: value for key, value in line.items() if key not in TIMES}) for line in lines],
        "batches": batches,
        "evaluation": exact(evaluation),
        "state": {key.removeprefix("branches."): list(tensor.shape) for key, tensor in state.items()},
    }


def first_batches(name: str, overrides: list[str]) -> list[dict]:
    """{a, b, group, samples} of the first batch of each pair: hashes of the raw views, and the names in
    order."""
    from vicjoint.recipe import load_recipe
    from vicjoint.training.build import build_parts

    parts = build_parts(load_recipe(str(RECIPES / f"{name}.yaml"), overrides))
    with parts.batches(0, 0, len(parts.tasks)) as batches:
        return [
            {
                "a": digest(batch.a),
                "b": digest(batch.b),
                "group": digest(batch.group),
                "samples": batch.samples,
            }
            for batch, _ in batches
        ]


def digest(view) -> str:
    found = hashlib.sha256()
    add(found, view)
    return found.hexdigest()


def add(found, view) -> None:
    """Type, shape and bytes of the tensors and arrays of a raw view, in order; of an object, those of its
    fields."""
    if isinstance(view, torch.Tensor):
        view = view.contiguous().numpy()
    if isinstance(view, np.ndarray):
        found.update(f"{view.dtype} {list(view.shape)}".encode() + view.tobytes())
    elif dataclasses.is_dataclass(view):
        add(found, [getattr(view, field.name) for field in dataclasses.fields(view)])
    elif isinstance(view, tuple | list):
        for part in view:
            add(found, part)


def exact(value):
    """Floats as hexadecimal, which shows every bit."""
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    return value.hex() if isinstance(value, float) else value


def listing() -> list[str]:
    from vicjoint import run

    return run.components().splitlines()


def traces(names: list[str]) -> dict:
    found = {"torch": torch.__version__, "list": listing(), "recipes": {}}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context, max_tasks_per_child=1) as pool:
        began = time.monotonic()
        waiting = {pool.submit(trace, name): name for name in names}
        with tqdm(total=len(names), unit="recipe", desc="traces") as bar:
            for done in concurrent.futures.as_completed(waiting):
                found["recipes"][waiting[done]] = done.result()
                bar.write(f"{waiting[done]} after {time.monotonic() - began:.0f} s")
                bar.update()
    return found


def differences(before, after, path: str = "") -> list[str]:
    """One line for each value that is not the same."""
    if type(before) is not type(after) or not isinstance(before, dict | list):
        return [] if before == after else [f"{path}: {before} -> {after}"]
    if isinstance(before, list):
        before, after = dict(enumerate(before)), dict(enumerate(after))
    return [
        line
        for key in dict.fromkeys([*before, *after])
        for line in differences(
            before.get(key, "absent"), after.get(key, "absent"), f"{path}.{key}" if path else str(key)
        )
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traces", description="Record or compare what every recipe computes."
    )
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help="bare names of shipped recipes; default: all"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, metavar="FILE", help="record")
    what.add_argument("--against", type=Path, metavar="FILE", help="compare with what was recorded")
    options = parser.parse_intermixed_args(arguments)
    names = options.recipes or sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if options.to:
        options.to.write_text(json.dumps(traces(names), indent=1), encoding="utf-8")
        print(f"traces of {len(names)} recipes: {options.to}")
        return 0
    before = json.loads(options.against.read_text(encoding="utf-8"))
    after = traces(names)
    before["recipes"] = {name: before["recipes"].get(name, "absent") for name in names}
    found = differences(before, json.loads(json.dumps(after)))
    print(
        "\n".join(found[:SHOWN]) + f"\n{len(found)} differences" if found else f"equal: {len(names)} recipes"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
