"""Curves -> plots, and pixels -> pictures, as data URIs for a run's report.

    chart("Loss", "What it is.", [Curve("", "#8957e5", *series(rows, "loss"))])    # Plot: an SVG
    frame(pixels, 72)                                                             # Picture: a PNG

An SVG holds nothing but numbers: page.html writes titles and labels around it.
"""

import base64
import io
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image

COLOURS = {"a": "#2f81f7", "b": "#e8842c"}
MORE_COLOURS = ["#8957e5", "#2da44e", "#d6409f", "#12a594", "#b58a00", "#e5484d"]
INK = (  # stands for the text colour in a plot; replaced by currentColor, which follows light and dark
    "#102030"
)
PLOT_STYLE = b"svg{color:#57606a}@media(prefers-color-scheme:dark){svg{color:#9aa4b0}}"
MAX_POINTS = 800  # per curve, so that a run of a million steps still makes a light page


@dataclass
class Curve:
    """A line of a plot: `label` and `colour` go to the legend (no label: no entry), x and y are equally
    long."""

    label: str
    colour: str
    x: list
    y: list
    style: str = "-"


class Plot(NamedTuple):
    """`key`: label and colour of every curve that has a label."""

    title: str
    note: str
    key: list[tuple[str, str]]
    uri: str


class Picture(NamedTuple):
    """Width and height in CSS pixels; `style`: CSS classes."""

    uri: str
    width: int
    height: int
    style: str


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
    """At most MAX_POINTS points that keep the peaks: the lowest and the highest of each stretch. Infinite
    values become gaps."""
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
        axes.plot(
            x,
            y,
            curve.style,
            color=curve.colour,
            linewidth=1.4,
            marker="o" if len(x) < 3 else "",
            markersize=3,
        )
    steps = {x for curve in curves for x in curve.x}
    if len(steps) == 1:
        axes.set_xlim(min(steps) - 1, min(steps) + 1)  # else a single step is drawn among fractions of steps
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
    return (
        target.getvalue()
        .replace(INK.encode(), b"currentColor")
        .replace(b"</style>", PLOT_STYLE + b"</style>", 1)
    )


def chart(
    title: str, note: str, curves: list[Curve], level: float | None = None, may_log: bool = False
) -> Plot | None:
    """A plot, or None where no curve has a point. `may_log`: log scale for a wide range."""
    curves = [c for c in curves if len(c.y)]
    if not curves:
        return None
    values = np.concatenate([np.asarray(c.y, float) for c in curves])
    values = values[np.isfinite(values) & (values != 0)]
    log = may_log and len(values) > 0 and values.min() > 0 and values.max() > 50 * values.min()
    return Plot(
        title,
        f"{note} Log scale.".strip() if log else note,
        [(c.label, c.colour) for c in curves if c.label],
        data_uri("svg+xml", draw(curves, level, log)),
    )


def frame(pixels: np.ndarray, wanted: int, mark: str = "") -> Picture:
    """uint8 [H, W, 3], shown about `wanted` CSS pixels wide: enlarged by a whole number and crisp, or shrunk
    smoothly."""
    width = pixels.shape[1]
    crisp = width <= wanted
    shown = width * max(1, round(wanted / width)) if crisp else wanted
    height = round(shown * pixels.shape[0] / width)
    image = Image.fromarray(pixels)
    if width > 2 * shown:  # twice what is shown stays sharp on dense screens
        image = image.resize((2 * shown, 2 * height))
    target = io.BytesIO()
    image.save(target, format="PNG", optimize=True)
    return Picture(
        data_uri("png", target.getvalue()), shown, height, f"{'crisp' if crisp else ''} {mark}".strip()
    )
