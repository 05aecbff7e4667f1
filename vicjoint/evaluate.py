"""Probes on a trained model.

python -m vicjoint.evaluate RUN  # the recipe's own; writes the run's evaluation.json and report anew
# others, on other data, at another step: the run stays as it is
python -m vicjoint.evaluate RUN source.root=/data/others 'evaluate.probes=[{name: knn, label: breed}]' \\
    --step 400 --json others.json
"""

import argparse
import sys
from pathlib import Path

from vicjoint import distributed
from vicjoint.exporting.reading import add_step_and_imports, imports_of, read_checkpoint
from vicjoint.files.guard import printable_lines
from vicjoint.files.paths import user_path
from vicjoint.files.write import write_json
from vicjoint.recipe import Recipe, RecipeError, load_recipe
from vicjoint.registry import ComponentError
from vicjoint.training.build import Parts, build_parts
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.training.folder import check_run
from vicjoint.training.going_on import changed_data, check_beginnings
from vicjoint.training.loop import evaluate, finish, show
from vicjoint.training.resuming import load_fitting, misfit, restore

MAY_CHANGE = ("evaluate", "source", "data", "pair", "pairs", "a", "b", "branches", "train.device")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vicjoint.evaluate", description="Evaluate the trained model of a run."
    )
    parser.add_argument("run", type=user_path)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="other probes (evaluate.probes=[...]) or data (source.root=...): printed, the run stays as it"
        " is",
    )
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the results there")
    parser.add_argument(
        "--write", action="store_true", help="write them into the run's evaluation.json and report after all"
    )
    add_step_and_imports(
        parser, "a step that has a checkpoint, or best (with checkpoint.best); the run stays as it is"
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        check_run(options.run)
        check_overrides(options.overrides)
        imports = imports_of(options)
        path = options.run / "recipe.yaml"
        own = load_recipe(path, check_paths=False, imports=imports)
        distributed.start(own.train.timeout)
        parts = build_parts(load_recipe(path, options.overrides, imports=imports))
        state = load_state(parts, options.run, own, options.step)
        as_it_is = options.overrides or options.step is not None
        if changed := changed_data(parts, state):
            say_data(changed, options.run, bool(as_it_is or options.write))
        if as_it_is and not options.write:
            results = evaluate(parts)[0]
            show(parts, results, state["step"])
        else:
            results = finish(parts, options.run, state["step"])
        if options.json and distributed.rank() == 0:
            write_json(options.json, results)
            print(f"results: {options.json}")
    except (RecipeError, ComponentError, CheckpointError, ValueError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return 2
    finally:
        distributed.stop()
    return 0


def check_overrides(overrides: list[str]) -> None:
    """Raises RecipeError for keys that an evaluation does not look at."""
    for given in overrides:
        key = given.partition("=")[0]
        if not any(key == may or key.startswith(may + ".") for may in MAY_CHANGE):
            raise RecipeError(
                f"{key}: changes nothing in an evaluation. Expected a key of {', '.join(MAY_CHANGE)}."
            )


def say_data(changed: str, run: Path, asked: bool) -> None:
    """Raises RecipeError where nobody asked for other data."""
    said = f"other data than those that the run was trained on. {changed}"
    if not asked:
        raise RecipeError(
            f"source: {said}. Name those it had, or say which these are: source.root=... (the run stays as it"
            " is), or --write (its evaluation.json and report are written anew)."
        )
    if distributed.rank() == 0:
        print(said)


def load_state(parts: Parts, run: Path, own: Recipe, step: int | str | None) -> dict:
    """Load the checkpoint of a step of the run whose recipe is `own`, or the last one; returns its state."""
    if step is None:
        state = load_fitting(parts, run, own)
        if state is None:
            raise RecipeError(f"{run} has no checkpoint. Run its recipe with out={run} first.")
    else:
        state = read_checkpoint(run, own, step)
        if reason := misfit(parts, state, own):
            raise CheckpointError(f"step: the checkpoint of step {state['step']} cannot be used: {reason}")
    check_beginnings(parts, state)
    restore(parts, state)
    return state


if __name__ == "__main__":
    sys.exit(main())
