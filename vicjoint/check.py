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

from tqdm import tqdm

from vicjoint.data import READ_ERRORS, ReaderError, Readers, Reads, Stream, TimeLimit, cause_of
from vicjoint.data.complete import said
from vicjoint.data.quarantine import allowed
from vicjoint.data.reading import TaskReading, build_reading
from vicjoint.files.guard import printable, printable_lines
from vicjoint.files.paths import user_path
from vicjoint.parts import Record
from vicjoint.recipe import Recipe, load_recipe
from vicjoint.registry import ComponentError
from vicjoint.training.build import build_measures

CLEAN, BAD, WRONG = 0, 1, 2
AT_ONCE = 16  # records that a process is given
NAMES = 5  # of a group, on the terminal

Place = tuple[int, str, int]
"""(number of the task, part, number of the record); a part is train, test, or one of a second table."""


class Records(Reads):
    """Place -> why the record cannot be read, or None."""

    def __init__(self, tasks: list[TaskReading], recipe: Recipe):
        self.pairs = [t.pair for t in tasks]
        self.parts = [parts_of(t) for t in tasks]
        self.streams = [Stream(t.source.train, t.pair, recipe.train.seed, i) for i, t in enumerate(tasks)]
        self.limit = TimeLimit(recipe.data.timeout)

    def places(self) -> list[Place]:
        return [
            (number, part, i)
            for number, parts in enumerate(self.parts)
            for part, records in parts.items()
            for i in range(len(records))
        ]

    def id_of(self, place: Place) -> str:
        number, part, index = place
        return str(self.parts[number][part][index]["id"])

    def name(self, number: int, index: int) -> str:
        """Of the record that is number `index` of all parts together."""
        for part, records in self.parts[number].items():
            if index < len(records):
                return f"{part}/{records[index]['id']}"
            index -= len(records)
        raise IndexError(index)

    def __getitem__(self, place: Place) -> str | None:
        number, part, index = place
        parts = self.parts[number]
        before = sum(len(parts[other]) for other in list(parts)[: list(parts).index(part)])
        try:
            with self.limit.reading(number, before + index, self.name(number, before + index)):
                self._read(number, part, index, parts[part][index])
        except READ_ERRORS as error:
            return cause_of(error)

    def _read(self, number: int, part: str, index: int, record: Record) -> None:
        """As evaluation reads it and, in training, as the first epoch does."""
        pair, two_tables = self.pairs[number], "second train" in self.parts[number]
        # windows of a video are what `sample` reads of it
        single = "views" in pair.gives and "windows" not in pair.gives
        if single:
            # the views of b may be those of a, or come from the other table, which is read there
            sides = (
                "b" if part.startswith("second") else "a" if two_tables or "both" not in pair.gives else "ab"
            )
            for side in sides:
                pair.views(record, side)
        # with a key, a sample's b is any row's
        if not single or (part == "train" and ("both" not in pair.gives or "rows" in pair.gives)):
            pair.sample(record, self.streams[number].generator(0, index, 1))


def parts_of(task: TaskReading) -> dict[str, list[Record]]:
    source = task.evaluated
    second = source.second or {}
    return {"train": source.train, "test": source.test} | {
        f"second {split}": records for split, records in second.items()
    }


def check(recipe: Recipe) -> dict:
    """Read everything; {records, bad, seconds, records_per_second, processes, unused: what probes say of
    records without a part in them, pairs: [{pair, source, left_out: what is said of records that are none of
    the pair's or never come, records: {part: number}, bad: [{part, sample, cause}]}]}. Raises ValueError, and
    ReaderError where processes that read keep dying."""
    tasks, readers = build_reading(recipe)
    _, unused = build_measures(recipe, tasks, readers)
    records = Records(tasks, recipe)
    places, workers = records.places(), recipe.data.workers
    batches = [places[i : i + AT_ONCE] for i in range(0, len(places), AT_ONCE)]
    began, bad = time.monotonic(), [[] for _ in tasks]
    bar = tqdm(total=len(places), unit="record", desc="check", mininterval=0.5, dynamic_ncols=True)
    done = 0
    try:
        with bar, Readers(records, batches, list, workers) as readers:
            for batch, causes in zip(batches, readers):
                for place, cause in zip(batch, causes):
                    if cause is not None:
                        bad[place[0]].append(
                            {"part": place[1], "sample": records.id_of(place), "cause": cause}
                        )
                done += 1
                bar.update(len(batch))
                bar.set_postfix({"bad": sum(map(len, bad))})
    except RuntimeError as error:  # a ReaderError too
        tried = [place for batch in batches[done : done + max(1, workers)] for place in batch]
        raise ReaderError(
            f"a process that reads data died or stopped answering ({str(error).splitlines()[0]}), on one of"
            f" these samples: {', '.join(printable(records.id_of(place)) for place in tried)}"
        ) from error
    seconds = time.monotonic() - began
    return {
        "records": len(places),
        "bad": sum(map(len, bad)),
        "seconds": seconds,
        "records_per_second": len(places) / seconds,
        "processes": max(1, workers),
        "unused": unused,
        "pairs": [
            {
                "pair": task.spec.name,
                "source": task.source.describe(),
                "left_out": [*filter(None, (said(task.source, task.spec.name), stream.describe()))],
                "records": {part: len(r) for part, r in parts.items()},
                "bad": found,
            }
            for task, stream, parts, found in zip(tasks, records.streams, records.parts, bad)
        ],
    }


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
            *of["left_out"],
            f"{which}{len(of['bad']):,} of {sum(of['records'].values()):,} records cannot be read ({parts})",
        ]
        if in_training:
            too_many = in_training > allowed(of["records"]["train"], max_bad_fraction)
            verdict = "stops at" if too_many else "replaces"
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
    parser.add_argument(
        "--json", type=user_path, metavar="FILE", help="also write everything found into a file"
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        if recipe.announcement:
            print(printable_lines(recipe.announcement), flush=True)
        found = check(recipe)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    except (ValueError, ComponentError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return WRONG
    except (ReaderError, KeyboardInterrupt) as error:
        print(f"stopped: {printable_lines(error)}", file=sys.stderr)
        return BAD
    print(in_words(found, recipe.data.max_bad_fraction))
    return BAD if found["bad"] else CLEAN


if __name__ == "__main__":
    sys.exit(main())
