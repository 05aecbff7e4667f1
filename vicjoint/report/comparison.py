"""Groups of runs -> what differs between their recipes, their numbers side by side, and a page with curves.

for probe, rows in tables_of(groups).items(): ...        # {probe: {row: {metric: number}}}
write_comparison(groups, Path("page.html"))
"""

import colorsys
import math
import statistics
from pathlib import Path

from vicjoint.files.guard import printable_lines
from vicjoint.files.write import write_text
from vicjoint.recipe import differing
from vicjoint.report.curves import HEALTH, progress_metrics
from vicjoint.report.page import TEMPLATES, results
from vicjoint.report.plots import COLOURS, MORE_COLOURS, Curve, chart, series
from vicjoint.report.runs import SEED, Group
from vicjoint.report.tables import INTERVALS, of_direction, printed

SHOWN_HEALTH = ("std", "rank")


# ---- what differs ----


def differences(groups: list[Group]) -> dict[str, list[str]]:
    """{key: its value in each group} of the keys that differ between groups or, of the seed, in one."""
    found = differing([group.recipe for group in groups])
    seeds = [", ".join(map(str, group.seeds)) for group in groups]
    if SEED in found or any(len(group.runs) > 1 for group in groups):
        found[SEED] = seeds
    return found


def measured_otherwise(changed: dict[str, list[str]]) -> bool:
    """Whether what differs changes what is measured, too: data or the options of a probe."""
    return any({"source", "probes"} & set(key.split(".")) for key in changed)


def announcements(groups: list[Group]) -> list[str]:
    """That sample data stood in for real ones, and in which groups where it is not all."""
    found: dict[str, list[str]] = {}
    for group in groups:
        if said := group.recipe["announcement"]:
            found.setdefault(said, []).append(group.name)
    return [
        said if len(names) == len(groups) else f"{', '.join(names)}: {said}" for said, names in found.items()
    ]


# ---- numbers ----


def tables_of(groups: list[Group]) -> dict[str, dict[str, dict]]:
    """{probe: {row: {metric: number, or {mean, spread, values}}}}. A row that looks the same in all groups,
    as chance does, is there once; others are named by their group, too."""
    probes = dict.fromkeys(probe for group in groups for probe in group.results)
    return {probe: dict(rows_of(probe, groups)) for probe in probes}


def rows_of(probe: str, groups: list[Group]):
    having = [group for group in groups if probe in group.results]
    names = dict.fromkeys(row for group in having for row in group.results[probe])
    for name in sorted(names, key=lambda name: (name != "model", name != "random_init")):
        rows = [(group, group.results[probe][name]) for group in having if name in group.results[probe]]
        looks = [{metric: printed(value) for metric, value in row.items()} for _, row in rows]
        if len(groups) == 1 or (
            name != "model" and len(rows) > 1 and all(look == looks[0] for look in looks)
        ):
            yield name, rows[0][1]
        else:
            yield from ((row_name(group, name), row) for group, row in rows)


def row_name(group: Group, row: str) -> str:
    return f"{group.name}: {row}"


def missing(probe: str, groups: list[Group]) -> list[str]:
    """Names of the groups that have results, but not of this probe."""
    return [group.name for group in groups if group.results and probe not in group.results]


def described(groups: list[Group], key: str) -> dict:
    """What the runs' environments say under a key, such as the names of a probe's branches; of several that
    say something of the same the first counts."""
    found = {}
    for group in reversed(groups):
        said = group.environment.get(key)
        found |= said if isinstance(said, dict) else {}
    return found


# ---- curves ----


def colours_of(groups: list[Group]) -> list[str]:
    """One for each group."""
    few = [*COLOURS.values(), *MORE_COLOURS]
    if len(groups) <= len(few):
        return few[: len(groups)]
    rgb = (colorsys.hls_to_rgb(i / len(groups), 0.5, 0.6) for i in range(len(groups)))
    return ["#" + "".join(f"{round(255 * value):02x}" for value in one) for one in rgb]


def curve(of_runs: list[list[dict]], colour: str, *path: str, style: str = "-") -> Curve:
    """Of the numbers at `path` in the rows of one run, or their mean and spread at the steps that the rows of
    all runs have."""
    all_points = [dict(zip(*series(rows, *path))) for rows in of_runs]
    points = [found for found in all_points if found]
    if len(points) < 2:
        (only,) = points or [{}]
        return Curve("", colour, list(only), list(only.values()), style)
    steps = [s for s in points[0] if all(s in other and math.isfinite(other[s]) for other in points)]
    values = [[found[step] for found in points] for step in steps]
    spread = [statistics.stdev(of) for of in values]
    return Curve("", colour, steps, [statistics.fmean(of) for of in values], style, spread)


def training(groups: list[Group], colours: list[str]) -> list[tuple[str, list[dict | None]]]:
    """(pair, plots) of loss, its terms and health, with a curve for each group."""
    pairs = dict.fromkeys(pair for group in groups for run in group.runs for pair in run.pairs)
    return [(pair, pair_plots(pair, groups, colours)) for pair in pairs]


def pair_plots(pair: str, groups: list[Group], colours: list[str]) -> list[dict | None]:
    rows = [[run.pairs.get(pair, []) for run in group.runs] for group in groups]
    known = [group.environment.get("terms") for group in groups]
    terms = dict.fromkeys(str(term) for found in known if isinstance(found, list) for term in found)
    of = lambda *path, style="-": [
        curve(of_group, c, *path, style=style) for of_group, c in zip(rows, colours)
    ]
    return [
        chart("Loss", "Sum of the weighted terms.", of("loss"), may_log=True),
        *(chart(term.capitalize(), "As weighted in the loss.", of(term), may_log=True) for term in terms),
        *(
            chart(
                HEALTH[name][0],
                f"Solid: branch a. Dotted: branch b. {HEALTH[name][1]}",
                [*of("health", "a", name), *of("health", "b", name, style=":")],
                1.0 if name == "std" else None,
            )
            for name in SHOWN_HEALTH
        ),
    ]


def progress(groups: list[Group], colours: list[str]) -> list[dict | None]:
    """The model's evaluations while training, with a curve for each group."""
    lines = [line for group in groups for run in group.runs for line in run.progress]
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        for probe, rows in read(line, "results").items():
            found.setdefault(probe, {}).update(dict.fromkeys(read(rows, "model")))
    branches, plots = described(groups, "probes"), []
    for probe, metrics in found.items():
        for metric in progress_metrics(list(metrics)):
            title = " ".join(part for part in of_direction(metric, branches.get(probe, ("a", "b"))) if part)
            curves = [
                curve([run.progress for run in group.runs], colour, "results", probe, "model", metric)
                for group, colour in zip(groups, colours)
            ]
            plots.append(chart(f"{probe}: {title}", "", curves))
    return plots


def read(value, key: str) -> dict:
    """The mapping under a key; an empty one where there is none."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


# ---- the page ----


def comparison(groups: list[Group]) -> str:
    """The whole HTML text."""
    colours, changed, tables = colours_of(groups), differences(groups), tables_of(groups)
    count = sum(len(group.runs) for group in groups)
    html = TEMPLATES.get_template("comparison.html").render(
        title=f"{count} runs side by side",
        groups=list(zip(groups, colours)),
        announcements=announcements(groups),
        notes=[note for group in groups for note in group.notes],
        changed=changed,
        otherwise=measured_otherwise(changed),
        intervals=INTERVALS,
        results=results(tables, described(groups, "probes"), described(groups, "metrics")),
        missing={probe: missing(probe, groups) for probe in tables},
        strong=["model", *(row_name(group, "model") for group in groups)],
        swatches={
            row_name(g, row): c for g, c in zip(groups, colours) for of in g.results.values() for row in of
        },
        progress=progress(groups, colours),
        training=training(groups, colours),
    )
    return printable_lines(html)


def write_comparison(groups: list[Group], path: Path) -> None:
    write_text(path, comparison(groups))
