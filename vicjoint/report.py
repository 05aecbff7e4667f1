"""Run folder -> report.html: one self-contained page with what ran, results, curves, spectra and pictures.

    python -m vicjoint.report runs/video_next_frame/1

Pictures and plots are data URIs and nothing is fetched, so the page can be mailed or archived. Names, messages and titles
come from users' data: they are escaped and stand in the HTML only; the plots hold nothing but numbers. A file that is missing
or broken costs its own part of the page, never the page.
"""

import argparse
import base64
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image

COLOURS = {"a": "#2f81f7", "b": "#e8842c"}
MORE_COLOURS = ["#8957e5", "#2da44e", "#d6409f", "#12a594", "#b58a00", "#e5484d"]
INK = "#102030"  # stands for the text colour in a plot; replaced by currentColor, which follows light and dark
PLOT_STYLE = b"svg{color:#57606a}@media(prefers-color-scheme:dark){svg{color:#9aa4b0}}"
MAX_POINTS = 800  # per curve, so that a run of a million steps still makes a light page
BAD_SHOWN = 20
LOWER_IS_BETTER = ("offset", "rmse", "copy_rate", "median_rank")
PROGRESS_METRICS = ("r1", "accuracy")  # what the curve over training shows
ROW_STYLES = {"model": "-", "random_init": "--", "chance": ":"}
SAME = "among the frames of the same video, the last context frame included"
METRICS = {
    "r1": f"R@1: share of queries whose true partner ranks first (next frame: {SAME})",
    "r5": "R@5: the same for the first five", "mrr": "mean of 1 / rank of the true partner, in the same list as r1",
    "same_r1": f"R@1: share of queries whose true next frame ranks first {SAME}",
    "same_r5": f"R@5: true next frame in the first five {SAME}", "same_mrr": f"mean of 1 / rank of the true next frame {SAME}",
    "all_r1": "R@1 over all videos: share of queries whose true next frame ranks first among next frames of all test videos",
    "all_r5": "R@5 over all videos", "all_mrr": "mean of 1 / rank over all videos",
    "offset": "mean distance in frames between the retrieved and the true frame",
    "copy_rate": "share of predictions that land on the last context frame",
    "skill": "1 - error / error of copying the last context frame, in whitened embeddings (0: no better than copying)",
    "accuracy": "share of right answers", "rmse": "root mean squared error", "median_rank": "median rank of the true partner",
    "spearman": "rank correlation of prediction and truth", "auc": "area under the ROC curve (0.5: chance)",
}
HEALTH = {
    "std": ("Standard deviation", "Mean over dimensions of z. The hinge (dashed) asks for 1; 0 is collapse."),
    "dead": ("Dead dimensions", "Share of dimensions clearly below the hinge."),
    "rank": ("Effective rank", "How many directions z really uses. Higher is richer."),
    "redundancy": ("Redundancy", "Mean absolute correlation between dimensions. Lower is better."),
}

CSS = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1f2328;--soft:#57606a;--card:#f6f8fa;--line:#d0d7de}
@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--fg:#e6edf3;--soft:#9aa4b0;--card:#171c23;--line:#2f3742}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:1100px;background:var(--bg);color:var(--fg);
  font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{margin:0 0 .5rem;font-size:1.9rem;line-height:1.2}
h2{margin:2.4rem 0 .8rem;padding-top:.8rem;border-top:1px solid var(--line);font-size:1.3rem}
h3{margin:1.2rem 0 .5rem;font-size:1.05rem}
.soft,small,figcaption,dl{color:var(--soft)} small{display:block;font-size:.82rem;line-height:1.35}
.banner{margin:0 0 1.2rem;padding:.8rem 1rem;border-radius:8px;background:#9a6700;color:#fff;font-weight:600}
.verdict{display:flex;gap:.7rem;align-items:baseline;font-size:1.05rem}
.badge{flex:none;padding:.1rem .7rem;border-radius:1rem;color:#fff;font-weight:600}
.green{background:#1a7f37}.amber{background:#9a6700}.red{background:#cf222e}.grey{background:#6e7781}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.7rem;margin:1rem 0}
.cards div,figure.plot{padding:.7rem .8rem;border-radius:8px;background:var(--card)} .cards b{display:block;font-size:1.15rem}
.scroll{overflow-x:auto} table{border-collapse:collapse}
th,td{padding:.3rem .8rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
.numbers{font-variant-numeric:tabular-nums;overflow-wrap:normal;white-space:nowrap}
.numbers :is(th,td):not(:first-child){text-align:right}
.numbers .model{background:var(--card)} .numbers td{color:var(--soft)} .numbers .model td,.numbers td.best{color:var(--fg)}
.best{font-weight:700} abbr{text-decoration:underline dotted;cursor:help}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .9rem;font-size:.85rem} dt{font-weight:600} dd{margin:0}
.facts th{font-weight:500;color:var(--soft);white-space:nowrap}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:.9rem}
figure{margin:0} .plot img{display:block;width:100%;height:auto;margin:.3rem 0} .plot figcaption b{color:var(--fg)}
.key{white-space:nowrap;margin-left:.7rem;font-size:.85rem}
.key i{display:inline-block;width:.8rem;height:.2rem;margin-right:.3rem;vertical-align:middle;border-radius:2px}
.case{margin:.6rem 0;padding:.6rem .8rem;border-radius:8px;background:var(--card)}
.frames{display:flex;gap:1.4rem;align-items:flex-end;overflow-x:auto;padding-top:.3rem}
.frames figure{flex:none} .frames figcaption{font-size:.82rem} .frames div{display:flex;gap:3px}
.frames img{display:block} .crisp{image-rendering:pixelated} .mark-green,.mark-red{margin:3px;outline:3px solid #2da44e}
.mark-red{outline-color:#e5484d}
pre{overflow-x:auto;padding:.8rem;border-radius:8px;background:var(--card);font-size:.85rem} summary{cursor:pointer}
"""


@dataclass
class Curve:
    """A line of a plot: `label` and `colour` go to the legend (no label: no entry), x and y are equally long."""

    label: str
    colour: str
    x: list
    y: list
    style: str = "-"


def read_lines(path: Path) -> list[dict]:
    """The JSON objects of a JSON-lines file. A line that does not parse (a run killed while it wrote) is passed over."""
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
    """`read_lines` in the order of `step`; where a resumed run repeated a step, its later line counts. ValueError: no line."""
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


def data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def series(rows: list[dict], *path: str) -> tuple[list, list]:
    """Steps and values of the rows that have a number at `path`."""
    steps, values = [], []
    for row in rows:
        value = row
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if is_number(value):
            steps.append(row["step"])
            values.append(value)
    return steps, values


def thin(x, y) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points that keep the peaks: the lowest and the highest of each stretch. Infinite values become gaps."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    y = np.where(np.isfinite(y), y, np.nan)
    if len(y) <= MAX_POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(y)), MAX_POINTS // 2)
    kept = sorted({int(s[pick(y[s])]) for s in stretches for pick in (np.argmin, np.argmax)})
    return x[kept], y[kept]


def short(value: float, _=None) -> str:
    """Tick label: 12000 -> 12k. Plain characters, no formula."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def draw(curves: list[Curve], level: float | None, log: bool) -> bytes:
    """The curves as an SVG without any text but numbers; `level` is a dashed horizontal line."""
    figure = Figure(figsize=(3.6, 2.0), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot(facecolor="none")
    if level is not None:
        axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.8)
    for curve in curves:
        x, y = thin(curve.x, curve.y)
        axes.plot(x, y, curve.style, color=curve.colour, linewidth=1.4, marker="o" if len(x) < 3 else "", markersize=3)
    if log:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(short))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", colors=INK, labelsize=8, length=2)
    axes.grid(color=INK, alpha=0.18, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    target = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "vicjoint", "svg.fonttype": "path"}):
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue().replace(INK.encode(), b"currentColor").replace(b"</style>", PLOT_STYLE + b"</style>", 1)


def chart(title: str, note: str, curves: list[Curve], level: float | None = None, may_log: bool = False) -> str:
    """A plot with its legend and explanation in HTML; empty where no curve has a point. `may_log`: log scale for a wide range."""
    curves = [c for c in curves if len(c.y)]
    if not curves:
        return ""
    values = np.concatenate([np.asarray(c.y, float) for c in curves])
    values = values[np.isfinite(values) & (values != 0)]
    log = may_log and len(values) > 0 and values.min() > 0 and values.max() > 50 * values.min()
    key = "".join(f'<span class="key"><i style="background:{c.colour}"></i>{escape(c.label)}</span>' for c in curves if c.label)
    image = data_uri("svg+xml", draw(curves, level, log))
    note += " Log scale." if log else ""
    return (f'<figure class="plot"><figcaption><b>{escape(title)}</b>{key}</figcaption>'
            f'<img src="{image}" alt="{escape(title)}"><small>{escape(note.strip())}</small></figure>')


def curves_section(rows: list[dict], terms: list[str]) -> str:
    """Loss, its terms, health, learning rate and speed over steps."""
    def branches(name):
        return [Curve(b, COLOURS[b], *series(rows, "health", b, name)) for b in COLOURS]

    neutral = MORE_COLOURS[0]
    term_curves = [Curve(t, MORE_COLOURS[i % len(MORE_COLOURS)], *series(rows, t)) for i, t in enumerate(terms)]
    plots = [chart("Loss", "Sum of the weighted terms.", [Curve("", neutral, *series(rows, "loss"))], may_log=True),
             chart("Terms", "As weighted in the loss.", term_curves, may_log=True)]
    plots += [chart(title, note, branches(name), 1.0 if name == "std" else None) for name, (title, note) in HEALTH.items()]
    plots += [chart("Alignment", "Distance of pairs over distance of strangers: 0 is good, 1 is unrelated.",
                    [Curve("", neutral, *series(rows, "health", "alignment"))]),
              chart("Learning rate", "", [Curve("", neutral, *series(rows, "lr"))]),
              chart("Samples per second", "", [Curve("", neutral, *series(rows, "samples_per_second"))])]
    return f'<p class="soft">Horizontal axis: step.</p><div class="plots">{"".join(plots)}</div>'


def progress_section(rows: list[dict]) -> str:
    """The model's r1 (or accuracy) at every evaluation, beside random initialisation and chance."""
    probes = {probe: row["results"][probe] for row in rows for probe in row["results"]}
    plots = []
    for probe, results in probes.items():
        metrics = [m for m in results.get("model", {}) if m.endswith(PROGRESS_METRICS)] or list(results.get("model", {}))[:1]
        curves = [Curve(metric if name == "model" else "", MORE_COLOURS[i % len(MORE_COLOURS)],
                        *series(rows, "results", probe, name, metric), style)
                  for i, metric in enumerate(metrics) for name, style in ROW_STYLES.items()]
        plots.append(chart(probe, "Solid: model. Dashed: random initialisation. Dotted: chance.", curves))
    return f'<div class="plots">{"".join(plots)}</div>'


def spectrum_section(spectra: dict) -> str:
    """Eigenvalues of the covariance of z, on a log scale; those at rounding noise (1e-10 of the largest) are not shown."""
    curves = []
    for branch in COLOURS:
        values = np.asarray(spectra.get(branch, []), float)
        values = values[values > max(values.max(initial=0.0) * 1e-10, 0.0)]
        curves.append(Curve(branch, COLOURS[branch], list(range(1, len(values) + 1)), list(values)))
    note = "Eigenvalues of the covariance of z, largest first. A flat line uses all dimensions; a cliff shows collapsed ones."
    return f'<div class="plots">{chart("Covariance of z", note, curves, may_log=True)}</div>'


def lower_is_better(metric: str) -> bool:
    return metric.endswith(LOWER_IS_BETTER)


def explain(metric: str) -> str:
    """What a metric means, in words; empty for one that is not known here."""
    for prefix, words in (("a_to_b_", "from a to b: "), ("b_to_a_", "from b to a: ")):
        if metric.startswith(prefix):
            return words + METRICS[metric.removeprefix(prefix)] if metric.removeprefix(prefix) in METRICS else ""
    return METRICS.get(metric, "")


def decimals(value) -> str:
    return f"{value:.3f}" if is_number(value) else "–" if value is None else escape(str(value))


def best_values(rows: dict, metrics: list[str]) -> dict[str, str]:
    """The best value of each metric, as printed: what looks equal in the table counts as equal."""
    best = {}
    for metric in metrics:
        values = [v for row in rows.values() for v in [row.get(metric)] if is_number(v) and np.isfinite(v)]
        if values:
            best[metric] = decimals((min if lower_is_better(metric) else max)(values))
    return best


def result_table(probe: str, rows: dict[str, dict]) -> str:
    """One probe's table: model, random_init, then the other rows; best value per column in bold; a legend below."""
    names = [n for n in ("model", "random_init") if n in rows] + [n for n in rows if n not in ("model", "random_init")]
    metrics = list(dict.fromkeys(metric for name in names for metric in rows[name]))
    best = best_values(rows, metrics)
    head = "".join(f'<th><abbr title="{escape(explain(m) or "not described here")}">{escape(m)}</abbr> '
                   f'{"↓" if lower_is_better(m) else "↑"}</th>' for m in metrics)
    body = ""
    for name in names:
        values = [(decimals(rows[name].get(m)), m) for m in metrics]
        cells = "".join(f'<td class="best">{v}</td>' if v == best.get(m) else f"<td>{v}</td>" for v, m in values)
        body += f'<tr{" class=model" if name == "model" else ""}><th>{escape(name)}</th>{cells}</tr>'
    legend = "".join(f"<dt>{escape(m)}</dt><dd>{escape(explain(m))}</dd>" for m in metrics if explain(m))
    return (f'<h3>{escape(probe)}</h3><div class="scroll"><table class="numbers"><tr><th></th>{head}</tr>{body}</table></div>'
            f'<p class="soft">Bold: best of the column. ↑ higher is better, ↓ lower is better.</p><dl>{legend}</dl>')


def frame(pixels: np.ndarray, wanted: int, mark: str = "") -> str:
    """uint8 [H, W, 3] as an <img> about `wanted` CSS pixels wide: enlarged by a whole number and crisp, or shrunk smoothly."""
    width = pixels.shape[1]
    shown = width * max(1, round(wanted / width)) if width <= wanted else wanted
    height = round(shown * pixels.shape[0] / width)
    image = Image.fromarray(pixels)
    if width > 2 * shown:  # twice what is shown stays sharp on dense screens
        image = image.resize((2 * shown, 2 * height))
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    style = " ".join(c for c in ("crisp" if width <= wanted else "", mark) if c)
    return f'<img class="{style}" width="{shown}" height="{height}" alt="" src="{data_uri("png", target.getvalue())}">'


def pictures_section(arrays: dict[str, np.ndarray]) -> str:
    """context uint8 [n, T, H, W, 3] | retrieved and target uint8 [n, H, W, 3], with title [n] and good bool [n]."""
    cases = {True: "", False: ""}
    for i, good in enumerate(arrays["good"]):
        context = "".join(frame(pixels, 72) for pixels in arrays["context"][i])
        retrieved = frame(arrays["retrieved"][i], 144, "mark-green" if good else "mark-red")
        target = frame(arrays["target"][i], 144, "mark-green")
        cases[bool(good)] += (
            f'<div class="case">{escape(str(arrays["title"][i]))}<div class="frames">'
            f"<figure><div>{context}</div><figcaption>context</figcaption></figure>"
            f"<figure>{retrieved}<figcaption>retrieved</figcaption></figure>"
            f"<figure>{target}<figcaption>true next frame</figcaption></figure></div></div>")
    none = '<p class="soft">None among these pictures.</p>'
    return f"<h3>Good cases</h3>{cases[True] or none}<h3>Bad cases</h3>{cases[False] or none}"


def bad_samples_section(rows: list[dict]) -> str:
    """How many samples could not be read, and the first of them with their causes."""
    if not rows:
        return "<p>Every sample could be read.</p>"
    columns = ("source", "sample", "cause")
    cells = ("".join(f"<td>{escape(str(row.get(c, '–')))}</td>" for c in columns) for row in rows[:BAD_SHOWN])
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    more = f" The first {BAD_SHOWN}:" if len(rows) > BAD_SHOWN else ""
    head = "".join(f"<th>{c}</th>" for c in columns)
    return (f"<p>{len(rows)} could not be read and {'was' if len(rows) == 1 else 'were'} replaced.{more}</p>"
            f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>')


def environment_section(environment: dict) -> str:
    """What ran, where and with how many parameters."""
    facts = {k: v for k, v in environment.items() if k not in ("announcement", "terms", "parameters") and v is not None}
    for branch, counts in (environment.get("parameters") or {}).items():
        facts[f"parameters {branch}"] = ", ".join(f"{part} {count:,}" if is_number(count) else f"{part} {count}"
                                                  for part, count in counts.items()) if isinstance(counts, dict) else counts
    lines = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(v if isinstance(v, str) else json.dumps(v))}</td></tr>"
                    for k, v in facts.items())
    return f'<div class="scroll"><table class="facts">{lines}</table></div>'


def verdict_line(rows: list[dict]) -> str:
    """The last health verdict with its badge: green healthy, red collapsed, amber any other trouble, grey none yet."""
    verdicts = [(row["step"], row["verdict"]) for row in rows if isinstance(row.get("verdict"), str)]
    if not verdicts:
        return '<p class="verdict"><span class="badge grey">unknown</span>No health was measured yet.</p>'
    step, words = verdicts[-1]
    colour, badge = ("green", "healthy") if words.startswith("healthy") else ("red", "collapsed") if "collapsed" in words \
        else ("amber", "watch")
    return f'<p class="verdict"><span class="badge {colour}">{badge}</span><span>{escape(words)} (step {step})</span></p>'


def summary(rows: list[dict]) -> str:
    """Steps, loss, time and speed as cards."""
    losses, seconds, speed = (series(rows, name)[1] for name in ("loss", "seconds", "samples_per_second"))
    cards = {"steps": f"{rows[-1]['step']:,}"}
    if losses:
        cards["loss, first and last"] = f"{losses[0]:.3g} → {losses[-1]:.3g}"
    if seconds:
        cards["time"] = f"{seconds[-1] / 60:.1f} min" if seconds[-1] >= 60 else f"{seconds[-1]:.1f} s"
    if speed:
        cards["samples per second, median"] = f"{np.median(speed):,.0f}"
    return '<div class="cards">' + "".join(f"<div>{k}<b>{v}</b></div>" for k, v in cards.items()) + "</div>"


def part(folder: Path, name: str, what: str, read: Callable, show: Callable) -> str:
    """The HTML of one part: `show(read(file))`, or one sentence that says why it is left out."""
    try:
        return show(read(folder / name))
    except FileNotFoundError:
        reason = "is not there"
    except Exception as error:  # whatever is wrong with a file, a report must not end the run that it describes
        cause = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        reason = f"cannot be shown ({cause})"
    return f'<p class="soft">{escape(name)} {escape(reason)}, so {what} left out.</p>'


def attempt(read: Callable, path: Path, fallback):
    """`read(path)`, or the fallback where the file is missing or broken: `part` says so where it shows that file."""
    try:
        return read(path)
    except Exception:
        return fallback


def page(folder: Path) -> str:
    """The whole HTML text for a run folder."""
    def read_recipe(path):
        return yaml.safe_load(path.read_text(encoding="utf-8"))["name"]

    name = str(attempt(read_recipe, folder / "recipe.yaml", folder.name))
    environment = attempt(read_json, folder / "environment.json", {})
    announcement = environment.get("announcement")
    terms = environment.get("terms") or ["invariance", "variance", "covariance"]
    parts = [
        ("", "metrics.jsonl", "the verdict is", read_steps, lambda rows: verdict_line(rows) + summary(rows)),
        ("Results", "evaluation.json", "the result table is", read_json,
         lambda results: "".join(result_table(probe, rows) for probe, rows in results.items())),
        ("Evaluation during training", "evaluation.jsonl", "its curves are", read_steps, progress_section),
        ("Training", "metrics.jsonl", "the curves are", read_steps, lambda rows: curves_section(rows, terms)),
        ("Spectrum", "spectrum.json", "the spectrum is", read_json, spectrum_section),
        ("Pictures", "pictures.npz", "the pictures are", read_arrays, pictures_section),
        ("Bad samples", "bad_samples.jsonl", "the list of unreadable samples is", read_lines, bad_samples_section),
        ("What ran", "environment.json", "what ran is", read_json, environment_section),
        ("Recipe", "recipe.yaml", "the recipe is", lambda path: path.read_text(encoding="utf-8"),
         lambda text: f"<details><summary>The resolved recipe</summary><pre>{escape(text)}</pre></details>"),
    ]
    body = "\n".join((f"<h2>{title}</h2>" if title else "") + part(folder, *rest) for title, *rest in parts)
    banner = f'<p class="banner">{escape(str(announcement))}</p>' if announcement is not None else ""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser too refuses anything from outside
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(name)}</title><style>{CSS}</style></head>\n"
            f"<body>{banner}<h1>{escape(name)}</h1>\n{body}\n</body></html>\n")


def write_report(folder: Path) -> Path:
    """Write folder/report.html (whole or not at all) and return its path. NotADirectoryError: no such run folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is not a folder. Expected a run folder such as runs/video_next_frame/1.")
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


if __name__ == "__main__":
    sys.exit(main())
