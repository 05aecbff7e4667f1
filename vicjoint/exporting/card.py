"""The model card of an export, README.md: what was trained, on what data, with which results, and how to load
it. Filled from config.json, evaluation.json and the recipe; a template, card.md, has its words."""

import html
import re
from pathlib import Path
from typing import Any

import jinja2

from vicjoint.files.guard import printable_lines
from vicjoint.recipe import Recipe, Spec, to_yaml
from vicjoint.recipe.file import dump_yaml
from vicjoint.report.page import model_first, results
from vicjoint.report.tables import INTERVALS

SPECIAL = re.compile(r"[|`\[\]*]")
TAGS = ("vicjoint", "joint-embedding", "self-supervised-learning")


class Plain(str):
    """Text of the program's own, which stands in the card as it is."""


def as_text(value: Any) -> str:
    """Text from data, in one line, that is neither Markdown nor HTML."""
    if isinstance(value, Plain):
        return value
    line = html.escape(printable_lines(value), quote=False).replace("\n", " ")
    return SPECIAL.sub(lambda sign: f"&#{ord(sign.group())};", line)


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    finalize=as_text,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def card(
    config: dict[str, Any],
    evaluation: dict[str, Any],
    preprocessing: dict[str, dict[str, Any]],
    recipe: Recipe,
    models: list[tuple[str, str, Spec]],
    programs: list[tuple[str, str, str]],
) -> str:
    """README.md. config, evaluation, preprocessing: the files of those names. models: (folder, library,
    encoder) of those in their library's form. programs: (branch, file, format) of ONNX and PyTorch."""
    trained = config["training"]
    measured = results(model_first(evaluation), trained["probes"] or {}, trained["metrics"] or {})
    tags = [*TAGS, *dict.fromkeys(str(task.objective["name"]) for task in recipe.tasks)]
    tags += [name for spec in recipe.branches.values() if (name := spec.modality["name"]) not in tags]
    front = {"library_name": "vicjoint", "tags": list(dict.fromkeys(tags))}
    return TEMPLATES.get_template("card.md").render(
        front=Plain(dump_yaml(front)),
        recipe=recipe,
        config=config,
        branch=config["branch"],
        trained=trained,
        measured=[(probe, [table(found) for found in tables], legend) for probe, tables, legend in measured],
        behind=behind(measured),
        preprocessing=preprocessing,
        models=models,
        programs=programs,
        written=Plain("".join(f"    {printable_lines(line)}\n" for line in to_yaml(recipe).splitlines())),
        FOLLOWS={"own": "", "same": " (weights of a)", "ema": " (moving average of a)"},
        other_options=other_options,
        intervals=INTERVALS,
    )


def other_options(spec: Spec) -> str:
    """What else than the library's name of the model and where its weights came from a recipe says."""
    found = {key: value for key, value in spec.items() if key not in ("name", "model", "weights") and value}
    return f" (its options here: {found})" if found else ""


def table(found: dict[str, Any]) -> dict[str, Any]:
    """A table of the report with the best of each column in bold, and intervals beside numbers."""
    heads = [(name, arrow) for name, _, arrow in found["heads"]]
    bold = lambda text, best: f"**{as_text(text)}**" if best else as_text(text)
    rows = [
        (name, [Plain(f"{bold(text, best)} {interval}".strip()) for text, interval, best in cells])
        for name, cells in found["rows"]
    ]
    return {"title": found["title"], "heads": heads, "rows": rows}


def behind(measured: list) -> list[str]:
    """`probe metric (row value, model value)` wherever another row is better than the model."""
    found = []
    for probe, tables, _ in measured:
        for of_direction in tables:
            rows = dict(of_direction["rows"])
            for place, (metric, _, arrow) in enumerate(of_direction["heads"]):
                best = [name for name, cells in rows.items() if cells[place][2]]
                if arrow and best and "model" in rows and "model" not in best:
                    values = f"{best[0]} {rows[best[0]][place][0]}, model {rows['model'][place][0]}"
                    title = f" {of_direction['title']}" if of_direction["title"] else ""
                    found.append(f"{probe}{title} {metric} ({values})")
    return found
