"""python -m vicjoint.run RECIPE [key=value ...] [--dry-run] [--list] [--schema]

Trains what a recipe describes. Exit code 0: done (the last line on stdout is `run: FOLDER`); 2: a wrong recipe or arguments;
75: stopped by a signal with a checkpoint saved (the same command with out=FOLDER goes on); 1: anything else.
"""

import argparse
import json
import resource
import sys
import time

from vicjoint import registry
from vicjoint.config import Recipe, RecipeError, json_schema, load_recipe, to_yaml
from vicjoint.registry import ComponentError

DONE, FAILED, WRONG_RECIPE, STOPPED = 0, 1, 2, 75


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.list:
            return list_components()
        if options.schema:
            print(json.dumps(json_schema(), indent=1))
            return DONE
        if options.recipe is None:
            raise RecipeError("no recipe given. Usage: python -m vicjoint.run RECIPE [key=value ...]")
        recipe = load_recipe(options.recipe, options.overrides)
        if recipe.announcement:
            print(recipe.announcement, flush=True)
        if options.dry_run:
            return dry_run(recipe)
        from vicjoint.loop import train
        folder = train(recipe)
    except (RecipeError, ComponentError) as error:
        print(error, file=sys.stderr)
        return WRONG_RECIPE
    except stopped() as error:
        print(error, file=sys.stderr)
        return STOPPED
    except expected_failures() as error:
        print(f"stopped: {error}", file=sys.stderr)
        return FAILED
    print(f"run: {folder}")
    return DONE


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vicjoint.run", description="Train what a recipe describes.")
    parser.add_argument("recipe", nargs="?", help="a YAML file, or the bare name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=100 optim.lr=3e-4 out=FOLDER")
    parser.add_argument("--dry-run", action="store_true", help="show the resolved recipe, sizes, one measured step and the time to expect; then exit")
    parser.add_argument("--list", action="store_true", help="list every registered component with its options")
    parser.add_argument("--schema", action="store_true", help="print the recipe's JSON schema")
    return parser.parse_intermixed_args(arguments)


def stopped() -> type[Exception]:
    from vicjoint.loop import Stopped
    return Stopped


def expected_failures() -> tuple[type[Exception], ...]:
    """Errors whose message says all that a user needs."""
    from vicjoint.data import BadDataError
    from vicjoint.loop import TrainingError
    from vicjoint.video import VideoError
    return BadDataError, TrainingError, VideoError


def list_components() -> int:
    for family in registry.FAMILIES:
        print(family)
        for name in registry.names(family):
            options = [str(p).replace("'", "") for p in registry.options(registry.find(family, name)).values()]
            print(f"  {name:<28} {', '.join(options)}")
    return DONE


def dry_run(recipe: Recipe) -> int:
    """Build everything, take one step on real data, say what a run would need; nothing is written."""
    from vicjoint import data
    from vicjoint.loop import backward, build_parts, parameters
    parts = build_parts(recipe)
    print(to_yaml(recipe))
    for branch, counts in parameters(parts.model).items():
        print(f"branch {branch}: " + ", ".join(f"{name} {count:,} parameters" for name, count in counts.items()))
    print(parts.source.describe())
    print(f"samples: {len(parts.source.train):,} records x {parts.pair.samples_per_record} = "
          f"{len(parts.source.train) * parts.pair.samples_per_record:,} an epoch; steps: {parts.steps:,} of {recipe.train.batch_size}")
    stream = data.Stream(parts.source.train, parts.pair, recipe.train.seed)
    began = time.perf_counter()
    pair, bad = next(iter(data.batches(stream, parts.records_per_batch, 0, 0, 1)))
    reading = time.perf_counter() - began
    backward(parts.model, parts.objective, pair.to(parts.device), recipe)  # warm-up
    began = time.perf_counter()
    loss, terms, _ = backward(parts.model, parts.objective, pair.to(parts.device), recipe)
    parts.optimizer.step()
    step = time.perf_counter() - began
    print(f"one step: loss {float(loss):.3f} (" + ", ".join(f"{k} {float(v):.3f}" for k, v in terms.items()) + ")")
    print(f"one step: {step:.3f} s to train, {reading:.3f} s to read its batch on one process; bad samples in it: {len(bad)}")
    # with workers, reading goes on beside training and only the slower of the two counts
    each = max(step, reading / recipe.data.workers) if recipe.data.workers else step + reading
    print(f"estimated time: {each * parts.steps / 60:.1f} min without evaluation; peak memory: {peak_memory_mib(parts.device):.0f} MiB")
    return DONE


def peak_memory_mib(device) -> float:
    if device.type == "cuda":
        import torch
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    sys.exit(main())
