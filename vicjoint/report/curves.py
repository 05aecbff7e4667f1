"""The curves of a run's report: loss, terms and health of each pair over steps, evaluations over steps,
spectra.

curves_section(rows, ["invariance", "variance", "covariance"], {"video-text": ("video", "text")})      # rows:
the lines of metrics.jsonl
"""

from html import escape

import numpy as np

from vicjoint.report.plots import COLOURS, MORE_COLOURS, Curve, chart, series
from vicjoint.report.tables import of_direction

PROGRESS_METRICS = ("r1", "accuracy")  # what the curve over training shows
ROW_STYLES = {"model": "-", "random_init": "--", "chance": ":"}
HEALTH = {
    "std": ("Standard deviation", "Mean over dimensions of z. The hinge (dashed) asks for 1; 0 is collapse."),
    "dead": ("Dead dimensions", "Share of dimensions clearly below the hinge."),
    "rank": ("Effective rank", "How many directions z really uses. Higher is richer."),
    "redundancy": ("Redundancy", "Mean absolute correlation between dimensions. Lower is better."),
}
LATENTS = {
    "perplexity": (
        "Latents in use",
        "Perplexity of the choices: 1 means that one latent does all, their number that all are used alike.",
    ),
    "most_used": ("Most used latent", "Share of the samples that choose it."),
}


def by_pair(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each pair of the run, in the order of their first steps; rows that name none belong to
    one."""
    found = {}
    for row in rows:
        found.setdefault(str(row.get("pair", "")), []).append(row)
    return found


def curves_section(rows: list[dict], terms: list[str], branches: dict[str, tuple]) -> str:
    """Loss, its terms and health of each pair, learning rate and speed over steps. `branches`: {pair: names
    of its two}."""
    neutral, pairs = MORE_COLOURS[0], by_pair(rows)
    parts = [
        (
            f"<h3>{escape(pair)}</h3>" if len(pairs) > 1 else "",
            pair_plots(of_pair, terms, branches.get(pair, ("a", "b"))),
        )
        for pair, of_pair in pairs.items()
    ]
    parts.append(
        (
            "<h3>All pairs</h3>" if len(pairs) > 1 else "",
            [
                chart("Learning rate", "", [Curve("", neutral, *series(rows, "lr"))]),
                chart("Samples per second", "", [Curve("", neutral, *series(rows, "samples_per_second"))]),
            ],
        )
    )
    return '<p class="soft">Horizontal axis: step.</p>' + "".join(
        f'{title}<div class="plots">{"".join(plots)}</div>' for title, plots in parts
    )


def pair_plots(rows: list[dict], terms: list[str], names: tuple[str, str]) -> list[str]:
    """Loss, its terms and health of one pair of branches."""

    def branches(name):
        return [Curve(shown, COLOURS[b], *series(rows, "health", b, name)) for b, shown in zip("ab", names)]

    neutral = MORE_COLOURS[0]
    term_curves = [
        Curve(t, MORE_COLOURS[i % len(MORE_COLOURS)], *series(rows, t)) for i, t in enumerate(terms)
    ]
    plots = [
        chart(
            "Loss", "Sum of the weighted terms.", [Curve("", neutral, *series(rows, "loss"))], may_log=True
        ),
        chart("Terms", "As weighted in the loss.", term_curves, may_log=True),
    ]
    plots += [
        chart(title, note, branches(name), 1.0 if name == "std" else None)
        for name, (title, note) in HEALTH.items()
    ]
    plots.append(
        chart(
            "Alignment",
            "Distance of pairs over distance of strangers: 0 is good, 1 is unrelated.",
            [Curve("", neutral, *series(rows, "health", "alignment"))],
        )
    )
    if any("latents" in row for row in rows):
        plots += [
            chart(title, note, [Curve("", neutral, *series(rows, "latents", name))])
            for name, (title, note) in LATENTS.items()
        ]
    return plots


def progress_section(rows: list[dict], branches: dict[str, tuple]) -> str:
    """The model's r1 (or accuracy) at every evaluation, beside random initialisation and chance. `branches`:
    {probe: names of its two}."""
    probes = {probe: row["results"][probe] for row in rows for probe in row["results"]}
    plots = []
    for probe, results in probes.items():
        metrics = [m for m in results.get("model", {}) if m.endswith(PROGRESS_METRICS)] or list(
            results.get("model", {})
        )[:1]
        shown = {m: " ".join(of_direction(m, branches.get(probe, ("a", "b")))).strip() for m in metrics}
        curves = [
            Curve(
                shown[metric] if name == "model" else "",
                MORE_COLOURS[i % len(MORE_COLOURS)],
                *series(rows, "results", probe, name, metric),
                style,
            )
            for i, metric in enumerate(metrics)
            for name, style in ROW_STYLES.items()
        ]
        plots.append(chart(probe, "Solid: model. Dashed: random initialisation. Dotted: chance.", curves))
    return f'<div class="plots">{"".join(plots)}</div>'


def spectrum_section(spectra: dict) -> str:
    """Eigenvalues of the covariance of z, on a log scale; those at rounding noise (1e-10 of the largest) are
    not shown."""
    curves = []
    colours = [*COLOURS.values(), *MORE_COLOURS]
    for i, (branch, given) in enumerate(spectra.items()):
        values = np.asarray(given, float)
        values = values[values > max(values.max(initial=0.0) * 1e-10, 0.0)]
        curves.append(Curve(branch, colours[i % len(colours)], list(range(1, len(values) + 1)), list(values)))
    note = (
        "Eigenvalues of the covariance of z, largest first. A flat line uses all dimensions; a cliff shows"
        " collapsed ones."
    )
    return f'<div class="plots">{chart("Covariance of z", note, curves, may_log=True)}</div>'
