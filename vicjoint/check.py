"""python -m vicjoint.check RECIPE [key=value ...] [--json FILE]: read the whole data set once and list what
is bad.

Every record of train and test, of every pair and of second tables, is read as the pair reads it: as in
evaluation and, in the training part, also as in the first epoch. What no reading touches (frames between the
windows of a long film) is not looked at. Exit code 0: all can be read; 1: some cannot, or reading came to no
end; 2: a wrong recipe or arguments.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vicjoint import data
from vicjoint.training.build import TrainedPair, build_pairs, check_reading_options
from vicjoint.recipe import Recipe, RecipeError, load_recipe
from vicjoint.files.guard import printable, printable_lines
from vicjoint.model import modality_spec
from vicjoint.registry import ComponentError, build
from vicjoint.data.time_limit import TimeLimit

CLEAN, BAD, WRONG = 0, 1, 2
AT_ONCE = 16  # records that a process is given
NAMES = 5  # of a group, on the terminal


class Records(Dataset):
    """(number of the pair, part, number of the record) -> why it cannot be read, or None. A part is train,
    test, or one of a second table."""

    def __init__(self, pairs: list[TrainedPair], recipe: Recipe):
        self.pairs = [p.pair for p in pairs]
        self.parts = [parts_of(p.source) for p in pairs]
        self.streams = [
            data.Stream(p.source.train, p.pair, recipe.train.seed, number) for number, p in enumerate(pairs)
        ]
        self.limit = TimeLimit(recipe.data.timeout)

    def places(self) -> list[tuple[int, str, int]]:
        return [
            (number, part, i)
            for number, parts in enumerate(self.parts)
            for part, records in parts.items()
            for i in range(len(records))
        ]

    def name(self, place: tuple[int, str, int]) -> str:
        number, part, index = place
        return str(self.parts[number][part][index]["id"])

    def __getitem__(self, place: tuple[int, str, int]) -> str | None:
        number, part, index = place
        record = self.parts[number][part][index]
        try:
            with self.limit.reading(number, index, f"{part}/{record['id']}"):
                self._read(number, part, index, record)
        except data.READ_ERRORS as error:
            return data.cause_of(error)

    def _read(self, number: int, part: str, index: int, record: dict) -> None:
        pair, key = self.pairs[number], getattr(self.pairs[number], "key", None)
        if hasattr(pair, "modalities"):
            # with a key, b may come from a row of the other table, which is read there
            branches = (
                "b" if part.startswith("second") else "a" if "second train" in self.parts[number] else "ab"
            )
            for branch in branches:
                pair.plain_all(record, branch)
        elif hasattr(pair, "plain"):
            pair.plain(record)
        if not hasattr(pair, "plain") or (part == "train" and key is None):
            pair.sample(record, self.streams[number].generator(0, index, 1))


def parts_of(source) -> dict:
    second = getattr(source, "second", None) or {}
    return {"train": source.train, "test": source.test} | {
        f"second {split}": records for split, records in second.items()
    }


def build_records(recipe: Recipe) -> tuple[list[TrainedPair], Records]:
    """The recipe's pairs, ready to read, without its encoders. Raises RecipeError for a value that a
    component refuses."""
    try:
        pairs = build_pairs(recipe, torch.device("cpu"))
        check_reading_options(recipe, pairs)
        branches = recipe.named_branches()
        for p in pairs:
            if hasattr(p.pair, "modalities"):
                p.pair.source = p.source
                p.pair.modalities = tuple(
                    build("modality", modality_spec(branches[name])).eval() for name in (p.spec.a, p.spec.b)
                )
        return pairs, Records(pairs, recipe)
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(str(error)) from error


def check(recipe: Recipe) -> dict:
    """Read everything; {records, bad, seconds, records_per_second, processes, pairs: [{pair, source, records:
    {part: number}, bad: [{part, sample, cause}]}]}. Raises RecipeError, and RuntimeError where a process that
    reads dies or stops answering."""
    pairs, records = build_records(recipe)
    places, workers = records.places(), recipe.data.workers
    batches = [places[i : i + AT_ONCE] for i in range(0, len(places), AT_ONCE)]
    patience = AT_ONCE * (TimeLimit.GRACE * recipe.data.timeout + 1) if workers and recipe.data.timeout else 0
    loader = DataLoader(
        records,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        timeout=patience,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=data.start_reading if workers else None,
    )
    began, bad = time.monotonic(), [[] for _ in pairs]
    with tqdm(total=len(places), unit="record", desc="check", mininterval=0.5, dynamic_ncols=True) as bar:
        for batch, causes in zip(batches, whole(loader, batches, records)):
            for place, cause in zip(batch, causes):
                if cause is not None:
                    bad[place[0]].append({"part": place[1], "sample": records.name(place), "cause": cause})
            bar.update(len(batch))
            bar.set_postfix({"bad": sum(map(len, bad))})
    seconds = time.monotonic() - began
    return {
        "records": len(places),
        "bad": sum(map(len, bad)),
        "seconds": seconds,
        "records_per_second": len(places) / seconds,
        "processes": max(1, workers),
        "pairs": [
            {
                "pair": p.name,
                "source": p.source.describe(),
                "records": {part: len(r) for part, r in parts.items()},
                "bad": found,
            }
            for p, parts, found in zip(pairs, records.parts, bad)
        ],
    }


def whole(loader: DataLoader, batches: list, records: Records):
    """What the loader gives, or RuntimeError that names the samples among which a process died or hung."""
    done = 0
    try:
        for causes in loader:
            yield causes
            done += 1
    except RuntimeError as error:
        waiting = [
            printable(records.name(place))
            for batch in batches[done : done + max(1, loader.num_workers)]
            for place in batch
        ]
        raise RuntimeError(
            f"a process that reads data died or stopped answering ({str(error).splitlines()[0]}), on one of"
            f" these samples: {', '.join(waiting)}"
        ) from error


# ---- saying it ----


def kind(cause: str) -> str:
    """A cause without what differs from sample to sample: names, paths, numbers."""
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"\S*/\S*|'[^']*'", "_", cause))


def in_words(found: dict, max_bad_fraction: float) -> str:
    """The report for the terminal: totals, then each kind of cause with its count and first samples, the
    commonest first."""
    lines = []
    for of in found["pairs"]:
        which = f"{of['pair']}: " if len(found["pairs"]) > 1 else ""
        parts = ", ".join(f"{number:,} {part}" for part, number in of["records"].items())
        in_training = sum(
            entry["part"] != "test" and not entry["part"].endswith(" test") for entry in of["bad"]
        )
        share = in_training / of["records"]["train"]
        lines += [
            f"{which}{printable(of['source'])}",
            f"{which}{len(of['bad']):,} of {sum(of['records'].values()):,} records cannot be read ({parts})",
        ]
        if in_training:
            verdict = "stops at" if share > max_bad_fraction else "replaces"
            lines.append(
                f"{which}{in_training:,} are for training, {share:.2%}: with"
                f" data.max_bad_fraction={max_bad_fraction:g} a run {verdict} them"
            )
        groups: dict[str, list[dict]] = {}
        for entry in of["bad"]:
            groups.setdefault(kind(entry["cause"]), []).append(entry)
        for group in sorted(groups.values(), key=len, reverse=True):
            names = ", ".join(f"{printable(e['sample'], 120)} ({e['part']})" for e in group[:NAMES])
            more = f" and {len(group) - NAMES:,} more" if len(group) > NAMES else ""
            lines += [f"  {len(group):,} x {printable(group[0]['cause'])}", f"      {names}{more}"]
    lines.append(
        f"read {found['records']:,} records in {found['seconds']:.1f} s, {found['records_per_second']:,.0f} a"
        f" second on {found['processes']} process{'es' if found['processes'] > 1 else ''}: "
        + ("all can be read" if not found["bad"] else f"{found['bad']:,} cannot")
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vicjoint.check",
        description="Read a recipe's whole data set once and list what is bad.",
    )
    parser.add_argument("recipe", help="a YAML file, or the bare name of a shipped recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. source.root=/data data.workers=8"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything found into a file")
    options = parser.parse_intermixed_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        if recipe.announcement:
            print(printable_lines(recipe.announcement), flush=True)
        found = check(recipe)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    except (RecipeError, ComponentError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return WRONG
    except (RuntimeError, KeyboardInterrupt) as error:
        print(f"stopped: {printable_lines(error)}", file=sys.stderr)
        return BAD
    print(in_words(found, recipe.data.max_bad_fraction))
    return BAD if found["bad"] else CLEAN


if __name__ == "__main__":
    sys.exit(main())
