"""Run folder -> report.html: one self-contained page with what ran, results, curves, spectra and pictures.

    python -m vicjoint.report runs/video_next_frame/1

Here plain data are gathered for the template, page.html, which escapes every text: names, messages and titles
come from users' data. Pictures and plots are data URIs and nothing is fetched, so the page can be mailed or
archived. A file that is missing or broken costs its own part of the page, never the page.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
import numpy as np
import yaml

from vicjoint.files.guard import printable, printable_lines
from vicjoint.files.paths import user_path
from vicjoint.files.write import write_text
from vicjoint.report.curves import by_pair, progress, spectrum, training
from vicjoint.report.plots import is_number, pictures, series
from vicjoint.report.tables import INTERVALS, directions, interval, number, printed

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["printable"] = printable
ARROWS = {"higher": "↑", "lower": "↓", None: ""}
SHOWN_ELSEWHERE = ("announcement", "terms", "parameters", "pairs", "probes", "metrics")  # or only used
BOUNDS = ("ceiling", "targets")  # rows that no model can reach


def read_lines(path: Path) -> list[dict]:
    """The JSON objects of a JSON-lines file. A line that does not parse (a run killed while it wrote) is
    passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def read_steps(path: Path) -> list[dict]:
    """`read_lines` in the order of `step`; where a resumed run repeated a step, its later line counts.
    ValueError: no line."""
    rows = {row["step"]: row for row in read_lines(path) if isinstance(row.get("step"), int)}
    if not rows:
        raise ValueError("it has no lines yet")
    return [rows[step] for step in sorted(rows)]


def read_json(path: Path) -> dict:
    """The object in a JSON file. ValueError: not JSON, not an object, or empty."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict) or not value:
        raise ValueError("it holds no JSON object with entries")
    return value


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; pickled objects are refused."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def health(rows: list[dict]) -> dict:
    """`pairs`: (name in headings, badge, verdict, losses); of all pairs: `steps`, those `skipped`, `seconds`
    without evaluations, and `speed`, the median of samples per second."""
    return {
        "pairs": [
            (name, *verdict(of_pair), series(of_pair, "loss")[1]) for _, name, of_pair in by_pair(rows)
        ],
        "steps": rows[-1]["step"],
        "skipped": sum(1 for row in rows if row.get("skipped")),
        "seconds": sum(series(rows, "seconds")[1]),
        "speed": np.median(series(rows, "samples_per_second")[1] or [0.0]),
    }


def verdict(rows: list[dict]) -> tuple[str, str]:
    """The last health verdict of a pair, with its badge: healthy, collapsed, watch for any other trouble."""
    said = [(row["step"], row["verdict"]) for row in rows if isinstance(row.get("verdict"), str)]
    if not said:
        return "unknown", "No health was measured yet."
    step, words = said[-1]
    collapsed = any(trouble.startswith("collapsed") for trouble in words.split("; "))
    badge = "healthy" if words.startswith("healthy") else "collapsed" if collapsed else "watch"
    return badge, f"{words} (step {step})"


def results(found: dict[str, dict], branches: dict, metrics: dict) -> list[tuple[str, list[dict], list]]:
    """(probe, tables, legend): a table for each direction of retrieval; the legend has the metrics that none
    above has explained. branches: {probe: names of its two}; metrics: {probe: {metric: [words, better]}}."""
    shown, said = [], set()
    for probe, rows in found.items():
        known, columns = metrics.get(probe, {}), directions(rows, branches.get(probe, ("a", "b")))
        tables = [metric_table(title, rows, names, known) for title, names in columns.items()]
        legend = dict.fromkeys(
            (name, words) for table in tables for name, words, _ in table["heads"] if words
        )
        shown.append((probe, tables, [explained for explained in legend if explained not in said]))
        said |= set(legend)
    return shown


def model_first(found: dict[str, dict]) -> dict[str, dict]:
    """An evaluation with the rows of each probe in the order of reading: the model, random_init, the rest."""
    order = lambda row: (row[0] != "model", row[0] != "random_init")
    return {probe: dict(sorted(rows.items(), key=order)) for probe, rows in found.items()}


def metric_table(title: str, rows: dict[str, dict], columns: dict[str, str], known: dict[str, list]) -> dict:
    """`title`; `heads`: (metric, its words, an arrow) of each column; `rows`: (name, [(number, its interval,
    whether it is the best of its column)]). columns: {metric: its heading}."""
    heads, cells = [], []
    for metric, heading in columns.items():
        words, better = known.get(heading, ("", None))
        heads.append((heading, words, ARROWS[better]))
        texts = column(
            [row.get(metric) for row in rows.values()], better, [name not in BOUNDS for name in rows]
        )
        intervals = [interval(row, metric) for row in rows.values()]
        cells.append([(text, of, best) for (text, best), of in zip(texts, intervals)])
    return {"title": title, "heads": heads, "rows": list(zip(rows, zip(*cells)))}


def column(values: list, better: str | None, counted: Sequence[bool] = ()) -> list[tuple[str, bool]]:
    """The values as printed, and which are the best of those that are `counted` (none said: all): what looks
    equal in the table counts as equal. A value is a number, or of several seeds what `together` gives."""
    counted = counted or [True] * len(values)
    means = [value["mean"] if isinstance(value, dict) else value for value in values]
    numbers = [value for value, of in zip(means, counted) if of and is_number(value) and np.isfinite(value)]
    best = number((min if better == "lower" else max)(numbers)) if numbers and better else None
    return [
        (printed(value), of and is_number(mean) and number(mean) == best)
        for value, mean, of in zip(values, means, counted)
    ]


def facts(environment: dict) -> dict[str, str]:
    """What ran, and how many parameters each branch has."""
    plain = {k: v for k, v in environment.items() if k not in SHOWN_ELSEWHERE and v is not None}
    parameters = {
        f"parameters {branch}": ", ".join(f"{part} {count:,}" for part, count in counts.items())
        for branch, counts in environment.get("parameters", {}).items()
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in (plain | parameters).items()}


def part(path: Path, read: Callable, show: Callable = lambda found: found) -> dict:
    """What the page shows of a file: `shown`, which is show(read(path)), or the `reason` why there is
    nothing."""
    try:
        return {"file": path.name, "shown": show(read(path)), "reason": ""}
    except FileNotFoundError:
        reason = "is not there"
    except Exception as error:  # whatever is wrong with a file, a report must not end the run it describes
        cause = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        reason = f"cannot be shown ({cause})"
    return {"file": path.name, "shown": None, "reason": reason}


def explorers(folder: Path) -> list[tuple[str, str]]:
    """(task, address from the report) of the run's pages to look around in; of a single one without a
    name."""
    found = sorted((folder / "explorer").glob("*/index.html"))
    if (folder / "explorer" / "index.html").exists():
        return [("", "explorer/index.html")]
    return [(path.parent.name, f"explorer/{path.parent.name}/index.html") for path in found]


def step_times(found: dict) -> dict:
    """Of the steps that were taken apart: `which`, `heads` and `rows` (part, milliseconds, share ...)."""
    on_gpu = "gpu_seconds" in found["rows"][0]
    rows = [
        (row["part"], f"{1000 * row['seconds']:.1f}", f"{100 * row['share']:.1f} %")
        + ((f"{1000 * row['gpu_seconds']:.1f}",) if on_gpu else ())
        for row in found["rows"]
    ]
    which = f"Mean of {found['steps']} steps from step {found['first_step']} on."
    return {"which": which, "heads": ("part", "ms", "share", *(("GPU ms",) if on_gpu else ())), "rows": rows}


def page(folder: Path) -> str:
    """The whole HTML text for a run folder."""
    environment = part(folder / "environment.json", read_json)["shown"] or {}
    pairs, probes, metrics = (
        found if isinstance(found := environment.get(key), dict) else {}
        for key in ("pairs", "probes", "metrics")
    )
    profiled = (folder / "profile.json").exists()
    terms = environment.get("terms") or ["invariance", "variance", "covariance"]
    name = part(folder / "recipe.yaml", lambda path: yaml.safe_load(path.read_bytes())["name"])
    html = TEMPLATES.get_template("page.html").render(
        title=name["shown"] or folder.name,
        announcement=environment.get("announcement"),
        intervals=INTERVALS,
        health=part(folder / "metrics.jsonl", read_steps, health),
        results=part(
            folder / "evaluation.json", read_json, lambda found: results(model_first(found), probes, metrics)
        ),
        progress=part(folder / "evaluation.jsonl", read_steps, lambda rows: progress(rows, probes)),
        training=part(folder / "metrics.jsonl", read_steps, lambda rows: training(rows, terms, pairs)),
        spectrum=part(folder / "spectrum.json", read_json, spectrum),
        explorers=explorers(folder),
        profile=part(folder / "profile.json", read_json, step_times) if profiled else None,
        pictures=part(folder / "pictures.npz", read_arrays, lambda arrays: pictures(arrays, probes)),
        bad_samples=part(folder / "bad_samples.jsonl", read_lines),
        facts=part(folder / "environment.json", read_json, facts),
        recipe=part(folder / "recipe.yaml", lambda path: path.read_text(encoding="utf-8")),
    )
    return printable_lines(html)


def write_report(folder: Path) -> Path:
    """Write folder/report.html (whole or not at all) and return its path. NotADirectoryError: no such run
    folder."""
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{str(folder)!r} is not a folder. Expected a run folder such as runs/video_next_frame/1."
        )
    write_text(folder / "report.html", page(folder.resolve()))
    return folder / "report.html"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vicjoint.report", description="Write RUN/report.html.")
    parser.add_argument("run", type=user_path, metavar="RUN", help="run folder")
    try:
        print(write_report(parser.parse_args(arguments).run))
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
