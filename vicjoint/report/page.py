"""Run folder -> report.html: one self-contained page with what ran, results, curves, spectra and pictures.

    python -m vicjoint.report runs/video_next_frame/1

Pictures and plots are data URIs and nothing is fetched, so the page can be mailed or archived. Names,
messages and titles come from users' data: they are escaped and stand in the HTML only; the plots hold nothing
but numbers. A file that is missing or broken costs its own part of the page, never the page.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import yaml

from vicjoint.files.guard import printable, printable_lines
from vicjoint.report.curves import by_pair, curves_section, progress_section, spectrum_section
from vicjoint.report.plots import is_number, pictures_section, series
from vicjoint.report.tables import directions, number

CSS = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
BAD_SHOWN = 20
LOWER_IS_BETTER = ("offset", "rmse", "copy_rate", "median_rank")
SETTINGS = ("rate", "penalty")  # chosen, neither good nor bad
METRICS = {
    "r1": "R@1: share of queries of which a right answer ranks first",
    "r5": "R@5: share of queries of which a right answer is among the first five",
    "r10": "R@10: the same for the first ten",
    "median_rank": (
        "median rank of the best right answer among all distinct candidates; equal similarities share the"
        " middle rank"
    ),
    "mrr": "mean of 1 / rank of the best right answer",
    "all_r1": (
        "R@1 over all videos: share of queries whose true next frame ranks first among next frames of all"
        " test videos"
    ),
    "all_r5": "R@5 over all videos",
    "all_mrr": "mean of 1 / rank over all videos",
    "open_r1": "R@1 among all candidate frames of all test videos together",
    "offset": "mean distance in frames between the retrieved and the true frame",
    "copy_rate": "share of predictions that land on the last context frame",
    "skill": (
        "1 - error / error of copying the last context frame, in whitened embeddings (0: no better than"
        " copying)"
    ),
    "accuracy": "share of right answers (knn: with the first k of the recipe)",
    "top5": "share of samples whose class is among the five of highest score",
    "rate": "learning rate that was best on the held-out training samples",
    "penalty": "ridge penalty that was best on the held-out training samples",
    "rmse": "root mean squared error",
    "r2": "1 - squared error / squared distance from the mean",
    "class_prototype": "share of queries whose class has the nearest mean embedding",
    "spearman": "rank correlation of prediction and truth",
    "pearson": "linear correlation of prediction and truth",
    "recall": "share of the possible futures that are the nearest candidate of one of the predictions",
    "precision": "share of the predictions whose nearest candidate is a possible future",
    "found_all": "share of queries all of whose possible futures are found",
    **{
        f"inside_{name}": "the same among the candidates of the query's own video"
        for name in ("recall", "precision", "found_all")
    },
    "auc": "area under the ROC curve (0.5: chance)",
}
SAME = "the candidate frames of the same video, the last context frame included"
OF_FRAMES = {  # where the probe finds next frames
    "r1": f"R@1: share of predictions whose true next frame ranks first among {SAME}",
    "r5": "R@5: the same for the first five",
    "mrr": "mean of 1 / rank of the true next frame, in the same list as r1",
}


def read_lines(path: Path) -> list[dict]:
    """The JSON objects of a JSON-lines file. A line that does not parse (a run killed while it wrote) is
    passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


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


def lower_is_better(metric: str) -> bool:
    return metric.endswith(LOWER_IS_BETTER)


def explain(metric: str, beside: dict) -> str:
    """What a metric means among the others of its table, in words; empty for one that is not known here."""
    if metric.startswith("accuracy_k"):
        return f"the same with {metric.removeprefix('accuracy_k')} neighbours"
    return (OF_FRAMES if "copy_rate" in beside else {}).get(metric) or METRICS.get(metric, "")


def decimals(value) -> str:
    return number(value) if is_number(value) else "–" if value is None else escape(str(value))


def best_values(rows: dict, metrics: list[str]) -> dict[str, str]:
    """The best value of each metric, as printed: what looks equal in the table counts as equal."""
    best = {}
    for metric in (m for m in metrics if m not in SETTINGS):
        values = [v for row in rows.values() for v in [row.get(metric)] if is_number(v) and np.isfinite(v)]
        if values:
            best[metric] = decimals((min if lower_is_better(metric) else max)(values))
    return best


def results_section(results: dict[str, dict], branches: dict[str, tuple]) -> str:
    """Every probe's table, or one for each direction of retrieval; below it the metrics that no table above
    has explained. `branches`: {probe: names of its two}."""
    html, said = '<p class="soft">Bold: best of the column. ↑ higher is better, ↓ lower is better.</p>', set()
    for probe, rows in results.items():
        tables, legend = "", {}
        for title, columns in directions(rows, branches.get(probe, ("a", "b"))).items():
            tables += (
                f"<div>{f'<h4>from {escape(title)}</h4>' if title else ''}{metric_table(rows, columns)}</div>"
            )
            legend |= {name: explain(name, columns) for name in columns.values()}
        new = {item for item in legend.items() if item[1]} - said
        said |= new
        words = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>"
            for name, meaning in legend.items()
            if (name, meaning) in new
        )
        html += f'<h3>{escape(probe)}</h3><div class="tables">{tables}</div>' + (
            f"<dl>{words}</dl>" if words else ""
        )
    return html


def metric_table(rows: dict[str, dict], columns: dict[str, str]) -> str:
    """Model, random_init, then the other rows; the best value of each column in bold. columns: {metric: its
    heading}."""
    names = [n for n in ("model", "random_init") if n in rows] + [
        n for n in rows if n not in ("model", "random_init")
    ]
    best = best_values(rows, list(columns))
    head = "".join(
        f'<th><abbr title="{escape(explain(name, columns) or "not described here")}">{escape(name)}</abbr> '
        f"{'' if name in SETTINGS else '↓' if lower_is_better(name) else '↑'}</th>"
        for name in columns.values()
    )
    body = ""
    for row in names:
        values = [(decimals(rows[row].get(m)), m) for m in columns]
        cells = "".join(
            f'<td class="best">{v}</td>' if v == best.get(m) else f"<td>{v}</td>" for v, m in values
        )
        body += f"<tr{' class=model' if row == 'model' else ''}><th>{escape(row)}</th>{cells}</tr>"
    return f'<div class="scroll"><table class="numbers"><tr><th></th>{head}</tr>{body}</table></div>'


def bad_samples_section(rows: list[dict]) -> str:
    """How many samples could not be read, and the first of them with their causes."""
    if not rows:
        return "<p>Every sample could be read.</p>"
    columns = ("source", "sample", "cause")
    cells = (
        "".join(f"<td>{escape(printable(row.get(c, '–')))}</td>" for c in columns) for row in rows[:BAD_SHOWN]
    )
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    more = f" The first {BAD_SHOWN}:" if len(rows) > BAD_SHOWN else ""
    head = "".join(f"<th>{c}</th>" for c in columns)
    return (
        f"<p>{len(rows)} could not be read and {'was' if len(rows) == 1 else 'were'} replaced.{more}</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
    )


def environment_section(environment: dict) -> str:
    """What ran, where and with how many parameters."""
    facts = {
        k: v
        for k, v in environment.items()
        if k not in ("announcement", "terms", "parameters", "pairs", "probes") and v is not None
    }
    for branch, counts in (environment.get("parameters") or {}).items():
        facts[f"parameters {branch}"] = (
            ", ".join(
                f"{part} {count:,}" if is_number(count) else f"{part} {count}"
                for part, count in counts.items()
            )
            if isinstance(counts, dict)
            else counts
        )
    lines = "".join(
        f"<tr><th>{escape(str(k))}</th><td>{escape(v if isinstance(v, str) else json.dumps(v))}</td></tr>"
        for k, v in facts.items()
    )
    return f'<div class="scroll"><table class="facts">{lines}</table></div>'


def verdict_line(rows: list[dict]) -> str:
    """Each pair's last health verdict with its badge: green healthy, red collapsed, amber any other trouble,
    grey none yet."""
    html, pairs = "", by_pair(rows)
    for pair, of_pair in pairs.items():
        which = f"{escape(pair)}: " if len(pairs) > 1 else ""
        verdicts = [(row["step"], row["verdict"]) for row in of_pair if isinstance(row.get("verdict"), str)]
        if not verdicts:
            html += (
                f'<p class="verdict"><span class="badge grey">unknown</span>{which}No health was measured'
                " yet.</p>"
            )
            continue
        step, words = verdicts[-1]
        collapsed = any(trouble.startswith("collapsed") for trouble in words.split("; "))
        colour, badge = (
            ("green", "healthy")
            if words.startswith("healthy")
            else ("red", "collapsed")
            if collapsed
            else ("amber", "watch")
        )
        html += (
            f'<p class="verdict"><span class="badge {colour}">{badge}</span><span>{which}{escape(words)}'
            f" (step {step})</span></p>"
        )
    return html


def summary(rows: list[dict]) -> str:
    """Steps, loss, time and speed as cards."""
    seconds, speed = (series(rows, name)[1] for name in ("seconds", "samples_per_second"))
    cards, pairs = {"steps": f"{rows[-1]['step']:,}"}, by_pair(rows)
    for pair, of_pair in pairs.items():
        if losses := series(of_pair, "loss")[1]:
            cards[f"loss{' of ' + escape(pair) if len(pairs) > 1 else ''}, first and last"] = (
                f"{losses[0]:.3g} → {losses[-1]:.3g}"
            )
    if skipped := sum(1 for row in rows if row.get("skipped")):
        cards["steps left out (not finite)"] = f"{skipped:,}"
    if seconds:
        took = sum(seconds)  # of all steps; evaluations come on top
        cards["training"] = f"{took / 60:.1f} min" if took >= 60 else f"{took:.1f} s"
    if speed:
        cards["samples per second, median"] = f"{np.median(speed):,.0f}"
    return '<div class="cards">' + "".join(f"<div>{k}<b>{v}</b></div>" for k, v in cards.items()) + "</div>"


def part(folder: Path, name: str, what: str, read: Callable, show: Callable) -> str:
    """The HTML of one part: `show(read(file))`, or one sentence that says why it is left out."""
    try:
        return show(read(folder / name))
    except FileNotFoundError:
        reason = "is not there"
    except (
        Exception
    ) as error:  # whatever is wrong with a file, a report must not end the run that it describes
        cause = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        reason = f"cannot be shown ({cause})"
    return f'<p class="soft">{escape(name)} {escape(reason)}, so {what} left out.</p>'


def attempt(read: Callable, path: Path, fallback):
    """`read(path)`, or the fallback where the file is missing or broken: `part` says so where it shows that
    file."""
    try:
        return read(path)
    except Exception:
        return fallback


def names_of_two(found) -> dict[str, tuple[str, str]]:
    """{pair or probe: names of its two branches} as environment.json has it; without what is none."""
    entries = found.items() if isinstance(found, dict) else ()
    return {name: tuple(map(str, two)) for name, two in entries if isinstance(two, list) and len(two) == 2}


def page(folder: Path) -> str:
    """The whole HTML text for a run folder."""

    def read_recipe(path):
        return yaml.safe_load(path.read_text(encoding="utf-8"))["name"]

    name = printable(attempt(read_recipe, folder / "recipe.yaml", folder.name))
    environment = attempt(read_json, folder / "environment.json", {})
    announcement = environment.get("announcement")
    terms = environment.get("terms") or ["invariance", "variance", "covariance"]
    pairs, probes = (names_of_two(environment.get(key)) for key in ("pairs", "probes"))
    parts = [
        ("", "metrics.jsonl", "the verdict is", read_steps, lambda rows: verdict_line(rows) + summary(rows)),
        (
            "Results",
            "evaluation.json",
            "the result table is",
            read_json,
            lambda results: results_section(results, probes),
        ),
        (
            "Evaluation during training",
            "evaluation.jsonl",
            "its curves are",
            read_steps,
            lambda rows: progress_section(rows, probes),
        ),
        (
            "Training",
            "metrics.jsonl",
            "the curves are",
            read_steps,
            lambda rows: curves_section(rows, terms, pairs),
        ),
        ("Spectrum", "spectrum.json", "the spectrum is", read_json, spectrum_section),
        (
            "Pictures",
            "pictures.npz",
            "the pictures are",
            read_arrays,
            lambda arrays: pictures_section(arrays, probes),
        ),
        (
            "Bad samples",
            "bad_samples.jsonl",
            "the list of unreadable samples is",
            read_lines,
            bad_samples_section,
        ),
        ("What ran", "environment.json", "what ran is", read_json, environment_section),
        (
            "Recipe",
            "recipe.yaml",
            "the recipe is",
            lambda path: path.read_text(encoding="utf-8"),
            lambda text: (
                f"<details><summary>The resolved recipe</summary><pre>{escape(text)}</pre></details>"
            ),
        ),
    ]
    body = printable_lines(
        "\n".join((f"<h2>{title}</h2>" if title else "") + part(folder, *rest) for title, *rest in parts)
    )
    banner = f'<p class="banner">{escape(printable(announcement))}</p>' if announcement is not None else ""
    policy = (  # the browser too refuses anything from outside
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>\n{CSS}</style></head>\n"
        f"<body>{banner}<h1>{escape(name)}</h1>\n{body}\n</body></html>\n"
    )


def write_report(folder: Path) -> Path:
    """Write folder/report.html (whole or not at all) and return its path. NotADirectoryError: no such run
    folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{str(folder)!r} is not a folder. Expected a run folder such as runs/video_next_frame/1."
        )
    target, temporary = folder / "report.html", folder / "report.html.tmp"
    # file names that are not UTF-8 arrive as lone surrogates, which have no encoding
    temporary.write_bytes(page(folder.resolve()).encode("utf-8", errors="backslashreplace"))
    os.replace(temporary, target)
    return target


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vicjoint.report", description="Write RUN/report.html.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    try:
        print(write_report(parser.parse_args(arguments).run))
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
