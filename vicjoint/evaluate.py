"""python -m vicjoint.evaluate RUN [--allow-imports]: the recipe's probes on the trained model of a run
folder; rewrites its evaluation.json and report."""

import argparse
import sys
from pathlib import Path

from vicjoint.files.guard import printable_lines
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.registry import ComponentError
from vicjoint.training.build import build_parts
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.training.folder import check_run
from vicjoint.training.loop import finish
from vicjoint.training.resuming import load_fitting, restore


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vicjoint.evaluate", description="Evaluate the trained model of a run."
    )
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--allow-imports",
        action="store_true",
        help="import the modules that the run's recipe names: they run code",
    )
    options = parser.parse_args(arguments)
    try:
        check_run(options.run)
        parts = build_parts(
            load_recipe(options.run / "recipe.yaml", imports=None if options.allow_imports else ())
        )
        state = load_fitting(parts, options.run)
        if state is None:
            raise RecipeError(
                f"{options.run} has no checkpoint. Run its recipe with out={options.run} first."
            )
        restore(parts, state)
        finish(parts, options.run)
    except (RecipeError, ComponentError, CheckpointError, ValueError) as error:
        print(printable_lines(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
