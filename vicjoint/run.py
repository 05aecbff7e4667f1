"""python -m vicjoint.run RECIPE [key=value ...] [--seeds 0-4] [--dry-run] [--profile STEPS] [--replay STEP]
python -m vicjoint.run RECIPE [key=value ...] --dry-run --processes 256 [--per-node 8] [--gpu h100]
python -m vicjoint.run --list | --schema

Trains what a recipe describes; with --seeds once for each of them, one after another. Exit code 0: done (the
last line on stdout is `run: FOLDER`); 2: a wrong recipe or arguments; 75: stopped by a signal with a
checkpoint saved (the same command with out=FOLDER goes on); 1: anything else.
"""

import argparse
import io
import json
import os
import sys
import time

try:
    import resource
except ImportError:  # Windows
    resource = None

from vicjoint import distributed, registry
from vicjoint.files.guard import printable_lines
from vicjoint.recipe import Recipe, RecipeError, json_schema, load_recipe, to_yaml
from vicjoint.registry import ComponentError, nearest

DONE, FAILED, WRONG_RECIPE, STOPPED = 0, 1, 2, 75


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # paths are printed as they are, also those that are not UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        if options.list or options.schema:
            return show(components() if options.list else json.dumps(json_schema(), indent=1))
        check_plan(options)
        if options.recipe is None:
            raise RecipeError("no recipe given. Usage: python -m vicjoint.run RECIPE [key=value ...]")
        recipe = load_recipe(options.recipe, options.overrides)
        if recipe.announcement and distributed.is_first():
            print(printable_lines(recipe.announcement), flush=True)
        if options.dry_run and (options.processes or options.gpu):
            return dry_run_of_many(recipe, options)
        if options.dry_run:
            return dry_run(recipe)
        if options.replay is not None:
            from vicjoint.training.nonfinite import replay

            replay(recipe, options.replay)
            return DONE
        if options.seeds is not None:
            from vicjoint.training.seeds import parse_seeds, train_seeds

            folder = train_seeds(options.recipe, options.overrides, parse_seeds(options.seeds))
        else:
            from vicjoint.training.loop import train

            folder = train(recipe, profile=options.profile)
    except (RecipeError, ComponentError) as error:
        print(printable_lines(error), file=sys.stderr)
        return WRONG_RECIPE
    except stopped() as error:
        if distributed.is_first():  # all stop at the same step
            print(printable_lines(error), file=sys.stderr)
        return STOPPED
    except expected_failures() as error:
        print(f"stopped: {printable_lines(error)}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"stopped: {printable_lines(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(
            "stopped at once. The same command with out=FOLDER goes on from the last checkpoint.",
            file=sys.stderr,
        )
        return FAILED
    if distributed.is_first():
        print(f"run: {folder}")
    return DONE


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vicjoint.run", description="Train what a recipe describes."
    )
    parser.add_argument("recipe", nargs="?", help="a YAML file, or the bare name of a shipped recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. train.steps=100 optim.lr=3e-4 out=FOLDER"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the resolved recipe, sizes, one measured step and the time to expect; then exit",
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="with --dry-run: memory of each of so many processes, traffic between them, and time",
    )
    parser.add_argument(
        "--per-node", type=int, metavar="N", help="with --processes: how many of them a node has"
    )
    parser.add_argument("--gpu", metavar="NAME", help="with --dry-run: does it fit, such as into an h100")
    parser.add_argument(
        "--list", action="store_true", help="list every registered component with its options"
    )
    parser.add_argument(
        "--seeds",
        metavar="0-4",
        help="train with each of these seeds (0-4, or 0,3,7), then show every row's mean and spread",
    )
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="STEPS",
        help="take the time of so many steps apart: a table, and RUN/trace.json.gz for ui.perfetto.dev",
    )
    parser.add_argument("--schema", action="store_true", help="print the recipe's JSON schema")
    parser.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="with out=FOLDER of a run: read a step's batch again, say what the model makes of it; then exit",
    )
    return parser.parse_intermixed_args(arguments)


def stopped() -> type[Exception]:
    from vicjoint.training.stopping import Stopped

    return Stopped


def expected_failures() -> tuple[type[Exception], ...]:
    """Errors whose message says all that a user needs."""
    from vicjoint.training.loop import OWN_ERRORS
    from vicjoint.video import VideoError

    return *OWN_ERRORS, VideoError


def components() -> str:
    """Every registered component with its options, a line each."""
    lines = []
    for family in registry.FAMILIES:
        lines.append(family)
        for name in registry.names(family):
            options = [
                str(p).replace("'", "") for p in registry.options(registry.find(family, name)).values()
            ]
            lines.append(f"  {name:<28} {', '.join(options)}".rstrip())
    return "\n".join(lines)


def show(text: str) -> int:
    """Print a long text. A reader that has seen enough (`| head`) ends it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # what is left is written as Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def dry_run(recipe: Recipe) -> int:
    """Build everything, take one step on real data, say what a run would need; nothing is written."""
    from vicjoint.training.build import build_parts, check_probes

    parts = build_parts(recipe)
    show_model(parts)
    each = sum(seconds_of_a_step(parts, t) * float(share) for t, share in zip(parts.tasks, parts.shares.of))
    check_probes(parts)
    evaluation = parts.evaluation.cost(parts.model, parts.untrained)
    print(evaluation.words())
    every, last = recipe.evaluate.every, recipe.evaluate.last
    times = ((parts.steps - 1) // every if every else 0) + last
    minutes = (each * parts.steps + evaluation.seconds * times) / 60
    print(
        f"estimated time: {minutes:.1f} min, of which {evaluation.seconds * times / 60:.1f} min for {times}"
        f" evaluations; peak memory: {peak_memory(parts.device)}"
    )
    return DONE


def dry_run_of_many(recipe: Recipe, options: argparse.Namespace) -> int:
    """The same for one of many processes: what it would need, and what would go between them."""
    from vicjoint.training.plan import plan
    from vicjoint.training.plan_text import in_words

    processes = options.processes or 1
    parts, shares = plan(recipe, processes)
    show_model(parts)
    print("\n".join(in_words(parts, shares, processes, options.per_node, options.gpu)))
    return DONE


def check_plan(options: argparse.Namespace) -> None:
    """Raises RecipeError for options of a plan that mean nothing."""
    for name in ("processes", "per_node"):
        value, option = getattr(options, name), "--" + name.replace("_", "-")
        if value is not None and value < 1:
            raise RecipeError(f"{option}: {value} is out of range. Expected 1 or more.")
    if options.per_node and not options.processes:
        raise RecipeError("--per-node: how many processes there are is not said. Add --processes N.")
    if (options.processes or options.gpu) and not options.dry_run:
        raise RecipeError("--processes, --gpu: these are of a plan. Add --dry-run, or start with torchrun.")
    if options.gpu:
        check_gpu(options.gpu)


def check_gpu(name: str) -> None:
    from vicjoint.training.plan_text import GPUS

    if name not in GPUS:
        raise RecipeError(f"--gpu: no '{name}'.{nearest(name, GPUS)} Expected one of {', '.join(GPUS)}.")


def show_model(parts) -> None:
    """The resolved recipe and the sizes of its branches."""
    from vicjoint.training.loop import parameters

    print(to_yaml(parts.recipe))
    for branch, counts in parameters(parts.model).items():
        print(
            f"branch {branch}: " + ", ".join(f"{name} {count:,} parameters" for name, count in counts.items())
        )


def seconds_of_a_step(parts, task) -> float:
    """Read and train the first batch of a task, and say what it took."""
    from vicjoint.accumulate import backward
    from vicjoint.training.build import length_of

    recipe, which = parts.recipe, f"{task.name}: " if len(parts.tasks) > 1 else ""
    print(length_of(parts, task))
    began = time.perf_counter()
    batch, bad = next(parts.batches_of(task, 1))
    reading = time.perf_counter() - began
    batch = batch.to(parts.device)
    for _ in range(2):  # the first is a warm-up
        began = time.perf_counter()
        loss, terms, _ = backward(
            parts.model, task.objective, batch, recipe.train, task.number, task.gradient_b
        )
    parts.optimizer.step()
    training = time.perf_counter() - began
    print(
        f"{which}one step: loss {float(loss):.3f} ("
        + ", ".join(f"{name} {float(value):.3f}" for name, value in terms.items())
        + ")"
    )
    print(
        f"{which}one step: {training:.3f} s to train, {reading:.3f} s to read its batch on one process; bad"
        f" samples in it: {len(bad)}"
    )
    # with workers, reading goes on beside training and only the slower of the two counts
    return max(training, reading / recipe.data.workers) if recipe.data.workers else training + reading


def peak_memory(device) -> str:
    if device.type == "cuda":
        import torch

        return f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
    if resource is None:
        return "not known on this system"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return f"{peak / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
