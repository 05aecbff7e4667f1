"""Curves -> plots, and what probes gave to be seen -> pictures, as data URIs for a run's report.

    chart("Loss", "What it is.", [Curve("", "#8957e5", *series(rows, "loss"))])    # with an SVG
    frame(pixels, 72)                                                             # with a PNG

An SVG holds nothing but numbers: page.html writes titles and labels around it.
"""

import base64
import io
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from PIL import Image

COLOURS = {"a": "#2f81f7", "b": "#e8842c"}
MORE_COLOURS = ["#8957e5", "#2da44e", "#d6409f", "#12a594", "#b58a00", "#e5484d"]
INK = (  # stands for the text colour in a plot; replaced by currentColor, which follows light and dark
    "#102030"
)
PLOT_STYLE = b"svg{color:#57606a}@media(prefers-color-scheme:dark){svg{color:#9aa4b0}}"
STYLE = {
    "svg.hashsalt": "vicjoint",
    "svg.fonttype": "path",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": INK,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 3,
    **{
        f"{axis}tick.{option}": value
        for axis in "xy"
        for option, value in {"color": INK, "labelsize": 8, "major.size": 2, "minor.size": 2}.items()
    },
}
MAX_POINTS = 800  # per curve, so that a run of a million steps still makes a light page


class Curve(NamedTuple):
    """A line of a plot: `label` and `colour` go to the legend (no label: no entry), x and y are equally
    long, and so is `spread`, the half width of a band around it."""

    label: str
    colour: str
    x: list
    y: list
    style: str = "-"
    spread: list | None = None


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


def thin(x, y, *further) -> list[np.ndarray]:
    """At most MAX_POINTS points of x, y and what goes with them, that keep the peaks of y: the lowest and the
    highest of each stretch. Infinite values become gaps."""
    x, y, *further = (np.asarray(values, float) for values in (x, y, *further))
    y = np.where(np.isfinite(y), y, np.nan)
    kept = np.arange(len(y))
    if len(y) > MAX_POINTS:
        stretches = np.array_split(kept, MAX_POINTS // 2)
        kept = sorted({int(s[pick(y[s])]) for s in stretches for pick in (np.argmin, np.argmax)})
    return [values[kept] for values in (x, y, *further)]


def short(value: float, _=None) -> str:
    """Tick label: 12000 -> 12k. Plain characters, no formula."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def draw(curves: list[Curve], level: float | None, log: bool) -> bytes:
    """The curves as an SVG without any text but numbers; `level` is a dashed horizontal line."""
    target = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        axes = Figure(figsize=(3.6, 2.0), layout="constrained").add_subplot()
        if level is not None:
            axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.8)
        for curve in curves:
            x, y, *spread = thin(curve.x, curve.y, *([curve.spread] if curve.spread else ()))
            axes.plot(x, y, curve.style, color=curve.colour, marker="o" if len(x) < 3 else "")
            for width in spread:
                low = np.maximum(y - width, np.nanmin(y)) if log else y - width  # where it may be below 0
                axes.fill_between(x, low, y + width, color=curve.colour, alpha=0.2, linewidth=0)
        steps = {x for curve in curves for x in curve.x}
        if len(steps) == 1:  # which else is drawn among fractions of steps
            axes.set_xlim(min(steps) - 1, min(steps) + 1)
        if log:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(short)
            axis.set_minor_formatter(NullFormatter())
        axes.figure.savefig(target, format="svg", metadata={"Date": None})
    return (
        target.getvalue()
        .replace(INK.encode(), b"currentColor")
        .replace(b"</style>", PLOT_STYLE + b"</style>", 1)
    )


def chart(
    title: str, note: str, curves: list[Curve], level: float | None = None, may_log: bool = False
) -> dict | None:
    """`uri`, `title`, `note` and `key` (label and colour of the curves that have a label) of a plot; None
    where no curve has a point. `may_log`: log scale for a wide range."""
    curves = [c for c in curves if len(c.y)]
    if not curves:
        return None
    values = np.concatenate([np.asarray(c.y, float) for c in curves])
    values = values[np.isfinite(values) & (values != 0)]
    log = may_log and len(values) > 0 and values.min() > 0 and values.max() > 50 * values.min()
    return {
        "uri": data_uri("svg+xml", draw(curves, level, log)),
        "title": title,
        "note": f"{note} Log scale.".strip() if log else note,
        "key": [(c.label, c.colour) for c in curves if c.label],
    }


def frame(pixels: np.ndarray, wanted: int, mark: str = "") -> dict:
    """`uri`, `width`, `height` (CSS pixels) and `style` (CSS classes) of a picture uint8 [H, W, 3]. It is
    shown about `wanted` CSS pixels wide: enlarged by a whole number and crisp, or shrunk smoothly."""
    width = pixels.shape[1]
    crisp = width <= wanted
    shown = width * max(1, round(wanted / width)) if crisp else wanted
    height = round(shown * pixels.shape[0] / width)
    image = Image.fromarray(pixels)
    if width > 2 * shown:  # twice what is shown stays sharp on dense screens
        image = image.resize((2 * shown, 2 * height))
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    return {
        "uri": data_uri("png", target.getvalue()),
        "width": shown,
        "height": height,
        "style": f"{'crisp' if crisp else ''} {mark}".strip(),
    }


def pictures(arrays: dict[str, np.ndarray], branches: dict[str, tuple[str, str]]) -> list[dict]:
    """The cases of each probe. `branches`: {probe: names of its two}; arrays: {"probe/name": array}.

    Of each probe: title [n]. Of curves, curve [n, N], and mark [n]: a place of it, or -1. Of all others good
    bool [n], and of next frames context uint8 [n, T, H, W, 3], retrieved and
    target uint8 [n, H, W, 3]. Of images: query [n, H, W, 3] (absent where queries are no images), neighbours
    [n, K, H, W, 3], captions [2], where {a} and {b} stand for the names of the branches, and optionally right
    bool [n, K] and views [m, 2, H, W, 3]. Of many futures: frame uint8 [n, H, W, 3], places [n, K, 2] with
    probabilities [n, K] and futures [n, M, 2] with chances [n, M]; (x, y) as shares of the side.
    """
    probes: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        probe, _, name = key.rpartition("/")
        probes.setdefault(probe, {})[name] = array
    return [
        {"probe": probe if len(probes) > 1 else "", **shown_of(of, *branches.get(probe, ("a", "b")))}
        for probe, of in probes.items()
    ]


def shown_of(arrays: dict[str, np.ndarray], a: str, b: str) -> dict:
    return {"curves": curves_of(arrays)} if "curve" in arrays else cases(arrays, a, b) | {"curves": []}


def curves_of(arrays: dict[str, np.ndarray]) -> list[dict | None]:
    """A plot of each curve, with a dot at its mark."""
    found = []
    for title, y, mark in zip(arrays["title"], arrays["curve"], arrays["mark"]):
        curves = [Curve("", COLOURS["a"], list(range(len(y))), list(y))]
        if mark >= 0:
            curves.append(Curve("here it happens", MORE_COLOURS[-1], [int(mark)], [float(y[mark])]))
        found.append(chart(str(title), "Horizontal axis: frame after the first clip.", curves, level=1.0))
    return found


def cases(arrays: dict[str, np.ndarray], a: str, b: str) -> dict:
    """`good` and `bad`: [(title, [(caption, pictures)])]; `kind`: neighbours, futures or next_frame;
    `views`: pairs of pictures."""
    kind = next((name for name in ("neighbours", "futures") if name in arrays), "next_frame")
    found = {"good": [], "bad": [], "kind": kind}
    captions = [str(caption).replace("{a}", a).replace("{b}", b) for caption in arrays.get("captions", ())]
    for i, good in enumerate(arrays["good"]):
        figures = {
            "neighbours": lambda i: neighbours(arrays, i, *captions),
            "futures": lambda i: futures(arrays, i),
            "next_frame": lambda i: next_frame(arrays, i),
        }[kind](i)
        found["good" if good else "bad"].append((str(arrays["title"][i]), figures))
    return found | {"views": [[frame(view, 72) for view in two] for two in arrays.get("views", ())]}


def futures(arrays: dict[str, np.ndarray], i: int) -> list[tuple[str, list[dict]]]:
    """The places of case i over the last frame of its clip: a ring for each future that is possible, a dot
    for each prediction, its area the probability, which stands beside it in percent."""
    target = io.BytesIO()
    axes = Figure(figsize=(2.2, 2.2)).add_axes((0, 0, 1, 1))
    axes.imshow(arrays["frame"][i], extent=(0, 1, 1, 0), alpha=0.55)
    for place, chance in zip(arrays["futures"][i], arrays["chances"][i]):
        axes.scatter(*place, s=1200 * chance, facecolors="none", edgecolors="white", linewidths=3.5)
        axes.scatter(*place, s=1200 * chance, facecolors="none", edgecolors=MORE_COLOURS[1], linewidths=2)
    for k, (place, probability) in enumerate(zip(arrays["places"][i], arrays["probabilities"][i])):
        axes.scatter(*place, s=250 * probability + 4, color=MORE_COLOURS[0], edgecolors="white")
        if probability >= 0.05:
            axes.annotate(
                f"{100 * probability:.0f}",
                place,
                (6, 8 * (k % 3) - 8),
                textcoords="offset points",
                fontsize=8,
            )
    axes.set(xlim=(0, 1), ylim=(1, 0))
    axes.set_axis_off()
    axes.figure.savefig(target, format="png", dpi=144)
    it = {"uri": data_uri("png", target.getvalue()), "width": 158, "height": 158, "style": ""}
    return [("rings: possible, dots: predicted, %", [it])]


def next_frame(arrays: dict[str, np.ndarray], i: int) -> list[tuple[str, list[dict]]]:
    mark = "mark-green" if arrays["good"][i] else "mark-red"
    return [
        ("context", [frame(pixels, 72) for pixels in arrays["context"][i]]),
        ("retrieved", [frame(arrays["retrieved"][i], 144, mark)]),
        ("true next frame", [frame(arrays["target"][i], 144, "mark-green")]),
    ]


def neighbours(arrays: dict[str, np.ndarray], i: int, query: str, found: str) -> list[tuple[str, list[dict]]]:
    """A query and what is nearest to it; marked are the first (right or wrong) and every other right one."""
    right = list(arrays["right"][i]) if "right" in arrays else [arrays["good"][i]]
    nearest = [
        frame(pixels, 72, "mark-green" if any(right[k : k + 1]) else "mark-red" if k == 0 else "")
        for k, pixels in enumerate(arrays["neighbours"][i])
    ]
    asked = [(query, [frame(arrays["query"][i], 72)])] if "query" in arrays else []
    return [*asked, (found, nearest)]
