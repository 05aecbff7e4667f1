"""A source's files and cells into tar shards, which the source `webdataset` reads.

    python -m vicjoint.pack RECIPE_OR_TABLE [key=value ...] --to shards/ [--size 256MB]
    python -m vicjoint.pack audio_video source.root=/data/index.csv --to shards/
    python -m vicjoint.pack /data/index.csv --to shards/ --short-side 256 --keyframes 12
    python -m vicjoint.pack --verify shards/

Every record of train and test goes in, with all its columns, in a random order that is always the same. What
cannot be read is left out, and named in shards/bad_samples.jsonl. Stopped or killed, the same command goes on
and makes the same bytes. The recipe's new source line is printed at the end (docs/packing.md).
Exit code 0: done; 1: too many bad records, or shards that are not whole; 2: wrong arguments; 75: stopped.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError
from tqdm import tqdm

from vicjoint.data import BadDataError
from vicjoint.data.reading import TaskReading, build_reading
from vicjoint.embed import on_signals
from vicjoint.files.guard import printable, printable_lines
from vicjoint.files.paths import user_path
from vicjoint.options import bytes_in
from vicjoint.packing.films import Films
from vicjoint.packing.folder import BAD, Folder, Shard, check_room, in_words, verify
from vicjoint.packing.members import Facts, layout_of
from vicjoint.packing.work import Packing, Plan, plan_of
from vicjoint.parts import Source
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.recipe.file import apply, parse_overrides
from vicjoint.recipe.keys import Data
from vicjoint.registry import ComponentError, build, load_built_in
from vicjoint.sources.rows import format_of
from vicjoint.training.folder import only_one

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 75
SIZE = "256MB"
NAMES = 3  # of records, on the terminal


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_intermixed_args(arguments)
    try:
        with on_signals():
            return check_whole(options) if options.verify else pack(options)
    except (RecipeError, ComponentError, ValueError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return WRONG
    except BadDataError as error:
        print(f"stopped: {printable_lines(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("stopped: the same command goes on after the last whole shard.", file=sys.stderr)
        return STOPPED


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m vicjoint.pack", description="Write a source's files and cells into tar shards."
    )
    add = made.add_argument
    add(
        "data",
        nargs="?",
        metavar="RECIPE_OR_TABLE",
        help="a recipe, or a csv, tsv, json, jsonl, parquet file",
    )
    add("overrides", nargs="*", metavar="key=value", help="e.g. source.root=/data")
    add("--to", type=user_path, metavar="FOLDER")
    add("--size", default=SIZE, help=f"of a shard, such as 64MB or 1GB; default: {SIZE}")
    add("--short-side", type=int, metavar="PIXELS", help="make videos smaller whose shorter side has more")
    add("--keyframes", type=int, metavar="FRAMES", help="make videos anew whose key frames are further apart")
    add("--crf", type=int, metavar="LOSS", help="of videos made anew, 0 to 51; default: 20")
    add("--workers", type=int, metavar="N", help="that read files or make videos; default: one for each core")
    add("--verify", type=user_path, metavar="FOLDER", help="compare shards with their manifest, and no more")
    return made


def pack(options: argparse.Namespace) -> int:
    """What the command does. Raises its errors."""
    size, films = check(options)
    load_built_in()
    name, source, facts, most_bad = read(options)
    print(printable(source.describe()), flush=True)
    plan = plan_of(source, layout_of(source, facts))
    name = re.sub(r"[^\w-]+", "_", name)
    made = {"data": source.describe(), "files": plan.mark, "--size": size, "videos": films, "name": name}
    folder = Folder(options.to, made | {"videos": films and list(films)})
    if folder.is_complete():
        print(f"all shards are there: nothing to do\npack: {options.to}")
        return DONE
    folder.check_empty()
    there = sum(shard.bytes for shard in folder.done())
    check_room(options.to, plan.bytes - (plan.films if films else 0) - there)
    folder.unfinished.mkdir(parents=True, exist_ok=True)
    with only_one(folder.unfinished, "--to", "packing"):
        folder.open()
        if done := folder.done():
            print(f"goes on after {len(done)} whole shard{'s' if len(done) > 1 else ''}", flush=True)
        workers = (os.cpu_count() or 1) if options.workers is None else options.workers
        packing = Packing(plan, folder, name, size, films, workers, most_bad)
        with progress(plan.bytes) as bar:
            shards = packing.work(done, bar)
        keys = ["id", *plan.layout.cells] if plan.layout.cells else []
        folder.finish(shards, keys, source.describe())
    say(options.to, plan, shards)
    return DONE


def check(options: argparse.Namespace) -> tuple[int, Films | None]:
    """(bytes of a shard, how videos are made anew). Raises RecipeError for arguments that cannot be."""
    if options.data is None or options.to is None:
        raise RecipeError(
            "python -m vicjoint.pack needs RECIPE_OR_TABLE and --to FOLDER, or --verify FOLDER."
        )
    try:
        size = bytes_in(options.size)
    except ValueError as error:
        raise RecipeError(f"--size: {error}") from None
    for option, value, least in (
        ("--size", size, 1),
        ("--short-side", options.short_side, 16),
        ("--keyframes", options.keyframes, 1),
        ("--workers", options.workers, 0),
    ):
        if value is not None and value < least:
            raise RecipeError(f"{option}: {value}. Expected a number from {least} on.")
    if options.crf is not None and not 0 <= options.crf <= 51:
        raise RecipeError(f"--crf: {options.crf}. Expected a number from 0 to 51.")
    films = None
    if options.short_side is not None or options.keyframes is not None:
        crf = {} if options.crf is None else {"crf": options.crf}
        films = Films(options.short_side, options.keyframes, **crf)
    elif options.crf is not None:
        raise RecipeError("--crf: no video is made anew. Give --short-side or --keyframes as well.")
    return size, films


def read(options: argparse.Namespace) -> tuple[str, Source, Facts, float]:
    """(name, source, what is known of its columns, most bad records) of a recipe or a table."""
    path = user_path(options.data)
    if format_of(path) is not None:
        changes, mistakes = parse_overrides(options.overrides)
        given = apply({"source": {"name": "table", "root": str(path)}, "data": {}}, changes, mistakes)
        if mistakes or set(given) > {"source", "data"}:
            wrong = " ".join(mistakes) or f"{', '.join(set(given) - {'source', 'data'})}: no recipe is given."
            raise RecipeError(
                f"{wrong} Of a table, source.OPTION=value and data.max_bad_fraction may be set."
            )
        try:
            most = Data.model_validate(given["data"]).max_bad_fraction
        except ValidationError as error:
            raise RecipeError(f"data: {error.errors()[0]['msg']}") from None
        return path.name.split(".")[0], build("source", given["source"]), Facts(), most
    recipe = load_recipe(options.data, options.overrides)
    if recipe.announcement:
        print(printable_lines(recipe.announcement), flush=True)
    tasks, _ = build_reading(recipe)
    if len({id(task.whole) for task in tasks}) > 1:
        raise RecipeError(
            f"recipe {recipe.name} has several sources. Pack each: give the recipe a single source line, or a"
            " table."
        )
    if tasks[0].whole.second is not None:
        raise RecipeError(
            "source.second: shards hold one table. Put the rows of both into one, or leave second out."
        )
    return recipe.name, tasks[0].whole, facts_of(tasks), recipe.data.max_bad_fraction


def facts_of(tasks: Sequence[TaskReading]) -> Facts:
    facts = Facts()
    for task in tasks:
        if not task.pair.uses_readers:
            continue
        for side, reader in zip("ab", task.pair.readers):
            if isinstance(column := task.spec.pair.get(side), str):
                (facts.files if reader.reads == "file" else facts.texts).add(column)
        for column in task.spec.pair.get("choose") or ():
            facts.several[column] = task.spec.pair.get("separator")
    return facts


# ---- saying it ----


def progress(total: int) -> tqdm:
    return tqdm(
        total=total, unit="B", unit_scale=True, desc="pack", delay=0.5, mininterval=0.5, dynamic_ncols=True
    )


def say(to: Path, plan: Plan, shards: list[Shard]) -> None:
    """What was done, and how a recipe reads it."""
    bad, kept = [one for s in shards for one in s.bad], [one for s in shards for one in s.kept]
    samples = {split: sum(s.samples for s in shards if s.split == split) for split in ("train", "test")}
    print(
        f"{samples['train']:,} train and {samples['test']:,} test records in"
        f" {sum(s.samples > 0 for s in shards):,} shards, {in_words(sum(s.bytes for s in shards))}"
    )
    if remade := sum(shard.remade for shard in shards):
        saved = sum(shard.saved for shard in shards)
        which = "saves" if saved >= 0 else "costs"
        print(f"{remade:,} videos were made anew, which {which} {in_words(abs(saved))}")
    if kept:
        print(f"{len(kept):,} videos stay as they were:{listed_in_line(kept)}")
    if bad:
        print(
            f"{len(bad):,} records cannot be read and are left out ({to / BAD} names them):"
            f"{listed_in_line(bad)}"
        )
    for column, name in plan.layout.renamed().items():
        print(f"column {printable(column)} is now {printable(name)}")
    spec = plan.layout.source(str(to.absolute()))
    line = yaml.safe_dump(spec, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    print(f"source: {line.strip()}")
    print(f"pack: {to}")


def listed_in_line(of: list[tuple[str, str]]) -> str:
    more = f"\n  and {len(of) - NAMES:,} more" if len(of) > NAMES else ""
    return "".join(f"\n  {printable(name, 120)}: {printable(cause)}" for name, cause in of[:NAMES]) + more


def check_whole(options: argparse.Namespace) -> int:
    """The command with --verify."""
    if options.data is not None or options.to is not None:
        raise RecipeError("--verify: takes no RECIPE_OR_TABLE and no --to. Leave them out.")
    wrong = verify(options.verify, progress)
    for line in wrong:
        print(printable(line), file=sys.stderr)
    print(f"verify: {options.verify}: " + (f"{len(wrong)} differ" if wrong else "all shards are whole"))
    return FAILED if wrong else DONE


if __name__ == "__main__":
    sys.exit(main())
