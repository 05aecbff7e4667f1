"""The plots of a run's report: loss, terms and health of each pair over steps, evaluations over steps,
spectra.

    training(rows, ["invariance", "variance", "covariance"], {"video-text": ("video", "text")})

Each takes what a file of the run folder holds (rows: the lines of metrics.jsonl) and gives plots, of which
None is one without a point. `branches`: {pair or probe: names of its two branches}.
"""

import numpy as np

from vicjoint.report.plots import COLOURS, MORE_COLOURS, Curve, chart, series
from vicjoint.report.tables import of_direction

PROGRESS_METRICS = ("r1", "accuracy")  # what the curve over training shows
ROW_STYLES = {"model": "-", "random_init": "--", "chance": ":"}
HEALTH = {
    "std": (
        "Standard deviation",
        "Mean over dimensions of z. The hinge (dashed) asks for 1 and the other terms pull it down: half of"
        " that is usual, below 0.25 raise the variance weight; 0 is collapse.",
    ),
    "dead_share": ("Dead dimensions", "Share of dimensions that hold nothing. Above 0 narrow the expander."),
    "rank": (
        "Effective rank",
        "How many directions z really uses; at most one less than the samples of a batch. Higher is richer.",
    ),
    "redundancy": ("Redundancy", "Mean absolute correlation between dimensions. Lower is better."),
}
LATENTS = {
    "perplexity": (
        "Latents in use",
        "Perplexity of the choices: 1 means that one latent does all, their number that all are used alike.",
    ),
    "most_used": ("Most used latent", "Share of the samples that choose it."),
}
SPECTRUM = (
    "Eigenvalues of the covariance of z, largest first. A flat line uses all dimensions; a cliff shows"
    " collapsed ones."
)


def by_pair(rows: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """(pair, its name in headings, its rows) in the order of their first steps. The only pair of a run needs
    no heading, so its name there is empty; rows that name no pair belong to one."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(str(row.get("pair", "")), []).append(row)
    return [(pair, pair if len(found) > 1 else "", of_pair) for pair, of_pair in found.items()]


def training(
    rows: list[dict], terms: list[str], branches: dict[str, tuple]
) -> list[tuple[str, list[dict | None]]]:
    """(heading, plots): loss, its terms and health of each pair, then learning rate and speed of all."""
    pairs = by_pair(rows)
    groups = [
        (heading, pair_plots(of_pair, terms, branches.get(pair, ("a", "b"))))
        for pair, heading, of_pair in pairs
    ]
    shared = [
        single(rows, "Learning rate", "", "lr"),
        single(rows, "Samples per second", "", "samples_per_second"),
    ]
    return [*groups, ("All pairs" if len(pairs) > 1 else "", shared)]


def single(rows: list[dict], title: str, note: str, *path: str, may_log: bool = False) -> dict | None:
    """A plot of one curve, of the numbers at `path`."""
    return chart(title, note, [Curve("", MORE_COLOURS[0], *series(rows, *path))], may_log=may_log)


def pair_plots(rows: list[dict], terms: list[str], names: tuple[str, str]) -> list[dict | None]:
    """Loss, its terms and health of one pair of branches."""

    def of_branches(name):
        return [Curve(shown, COLOURS[b], *series(rows, "health", b, name)) for b, shown in zip("ab", names)]

    of_terms = [Curve(t, MORE_COLOURS[i % len(MORE_COLOURS)], *series(rows, t)) for i, t in enumerate(terms)]
    return [
        single(rows, "Loss", "Sum of the weighted terms.", "loss", may_log=True),
        chart("Terms", "As weighted in the loss.", of_terms, may_log=True),
        *(
            chart(title, note, of_branches(name), 1.0 if name == "std" else None)
            for name, (title, note) in HEALTH.items()
        ),
        single(
            rows,
            "Alignment",
            "Distance of pairs over distance of strangers: 0 is good, 1 is unrelated.",
            "health",
            "alignment",
        ),
        *(single(rows, title, note, "latents", name) for name, (title, note) in LATENTS.items()),
    ]


def progress_metrics(measured: list[str]) -> list[str]:
    """Of a probe's metrics those that are shown over training."""
    return [metric for metric in measured if metric.endswith(PROGRESS_METRICS)] or measured[:1]


def progress(rows: list[dict], branches: dict[str, tuple]) -> list[dict | None]:
    """The model's r1 (or accuracy) at every evaluation, beside random initialisation and chance."""
    probes = {probe: row["results"][probe] for row in rows for probe in row["results"]}
    plots = []
    for probe, results in probes.items():
        measured = list(results.get("model", {}))
        curves = []
        for i, metric in enumerate(progress_metrics(measured)):
            label = " ".join(of_direction(metric, branches.get(probe, ("a", "b")))).strip()
            colour = MORE_COLOURS[i % len(MORE_COLOURS)]
            curves += [
                Curve(
                    label if row == "model" else "",
                    colour,
                    *series(rows, "results", probe, row, metric),
                    style,
                )
                for row, style in ROW_STYLES.items()
            ]
        plots.append(chart(probe, "Solid: model. Dashed: random initialisation. Dotted: chance.", curves))
    return plots


def spectrum(spectra: dict) -> list[dict | None]:
    """Eigenvalues of the covariance of z, on a log scale; those at rounding noise (1e-10 of the largest) are
    not shown."""
    curves = []
    colours = [*COLOURS.values(), *MORE_COLOURS]
    for i, (branch, given) in enumerate(spectra.items()):
        values = np.asarray(given, float)
        values = values[values > max(values.max(initial=0.0) * 1e-10, 0.0)]
        curves.append(Curve(branch, colours[i % len(colours)], list(range(1, len(values) + 1)), list(values)))
    return [chart("Covariance of z", SPECTRUM, curves, may_log=True)]
