"""Runs side by side: what differs, tables, seeds together, a page that is self-contained and escaped, and
words for folders that are no finished runs."""

import json
import re

import numpy as np
import pytest
import tiny

from vicjoint.compare import main
from vicjoint.recipe import load_recipe, to_yaml
from vicjoint.recipe.compare import differing
from vicjoint.report.comparison import curve, tables_of
from vicjoint.report.runs import grouped, names_of, read_run
from vicjoint.training import loop
from vicjoint.training.seeds import train_seeds

NASTY = "<script>alert(1)</script>"
TABLE = {
    "chance": {"top1": 0.1, "a_to_b_r1": 0.01},
    "model": {"top1": 0.5, "a_to_b_r1": 0.25},
    "random_init": {"top1": 0.2, "a_to_b_r1": 0.02},
}
BETTER = {"top1": ["share that is right", "higher"], "r1": [f"first {NASTY}", "higher"]}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def make(tmp_path):
    """A run folder, as a finished run leaves it."""

    def make(name, *overrides, top1=0.5, probe="knn", factor=1.0, without=(), **recipe):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        recipe = load_recipe(tiny.recipe(**recipe), overrides)
        (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
        branch = {"std": 0.9 * factor, "rank": 5.0 * factor}
        health = {"health": {"a": branch, "b": branch}, "verdict": "healthy: all is well"}
        steps = [
            {"step": s, "pair": "a-b", "loss": factor * 20 / s, "invariance": factor} for s in range(1, 15)
        ]
        lines(folder / "metrics.jsonl", [row | (health if row["step"] % 2 else {}) for row in steps])
        results = {probe: TABLE | {"model": TABLE["model"] | {"top1": top1}}}
        lines(folder / "evaluation.jsonl", [{"step": s, "results": results} for s in (5, 10)])
        said = {"terms": ["invariance"], "metrics": {probe: BETTER}, "probes": {probe: ["image", "text"]}}
        for file, value in (("evaluation", results), ("environment", said), ("spectrum", {"a": [1.0]})):
            (folder / f"{file}.json").write_text(json.dumps(value))
        for file in without:
            (folder / file).unlink()
        return folder

    return make


def compare(*arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def line_of(said: str, begin: str) -> list[str]:
    """The further cells of the first line that begins so."""
    return next(cells(line)[1:] for line in said.splitlines() if cells(line)[0] == begin)


# ---- what is shown ----


def test_keys_that_differ_and_tables(make, capsys):
    one, two = make("one", "optim.lr=0.1"), make("two", "data.workers=2", top1=0.75)
    compare(one, two)
    said = capsys.readouterr().out
    assert line_of(said, "what differs") == ["one", "two"]
    assert line_of(said, "optim.lr") == ["0.1", "0.01"]
    assert "data.workers" not in said and "train.seed" not in said
    assert line_of(said, "one: model")[-1] == "0.500" and line_of(said, "two: model")[-1] == "0.750"
    assert said.count("chance") == said.count("random_init") == 2, "once a table, where all have the same"
    assert "image to text" in said
    assert [line_of(said, name)[1:] for name in ("one", "two")] == [["14 steps", "healthy"]] * 2


def test_rows_that_differ_are_named_by_their_run(make):
    runs = [read_run(make(name), name) for name in ("one", "two", "three")]
    runs[2].results["knn"]["random_init"] = {"top1": 0.3}
    rows = tables_of(grouped(runs))["knn"]
    assert list(rows) == [
        *(f"{name}: model" for name in ("one", "two", "three")),
        *(f"{name}: random_init" for name in ("one", "two", "three")),
        "chance",
    ]
    assert rows["three: random_init"]["top1"] == 0.3


def test_intervals_stand_beside_single_runs(make, capsys, tmp_path):
    folders = [make("one"), make("two", "optim.lr=0.1"), make("three", "optim.lr=0.1", "train.seed=1")]
    for folder in folders:
        found = json.loads((folder / "evaluation.json").read_text())
        found["knn"]["model"] |= {"top1_low": 0.41, "top1_high": 0.62}
        (folder / "evaluation.json").write_text(json.dumps(found))
    compare(*folders, "--to", tmp_path / "page.html")
    said, html = capsys.readouterr().out, (tmp_path / "page.html").read_text("utf-8")
    assert line_of(said, "one: model")[-1] == "0.500 [0.410, 0.620]"
    assert line_of(said, "two and 1 more: model")[-1] == "0.500" and "top1_low" not in said + html
    assert html.count("<small>[0.410, 0.620]</small>") == 1 and "95 % interval" in html


def test_seeds_are_shown_by_mean_and_spread(make, capsys):
    folders = [
        make(f"{seed}", f"train.seed={seed}", top1=top1) for seed, top1 in ((0, 0.5), (1, 0.7), (2, 0.9))
    ]
    other = make("other", "optim.lr=0.5")
    compare(*folders, other)
    said = capsys.readouterr().out
    name = f"{folders[0].parent.name}/0 and 2 more"
    assert line_of(said, "what differs") == [name, "other"]
    assert line_of(said, "train.seed") == ["0, 1, 2", "0"]
    assert line_of(said, f"{name}: model")[-1] == "0.700 ±0.200"
    compare(*folders)
    said = capsys.readouterr().out
    assert line_of(said, "model")[-1] == "0.700 ±0.200" and line_of(said, "train.seed") == ["0, 1, 2"]


def test_the_same_seed_again_is_a_run_of_its_own(make):
    runs = [read_run(make(name, f"train.seed={name[-1]}"), name) for name in ("a0", "a1", "b0", "b1")]
    assert [[run.name for run in group.runs] for group in grouped(runs)] == [["a0", "a1"], ["b0", "b1"]]


def test_real_runs_and_a_folder_of_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "write_report", lambda folder: folder / "report.html")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(to_yaml(load_recipe(tiny.recipe(train={"steps": 4, "batch_size": 8}))))
    seeds = train_seeds(str(recipe), [f"out={tmp_path / 'seeds'}"], [0, 1])
    alone = loop.train(str(recipe), ["train.accumulate=2", f"out={tmp_path / 'alone'}"])
    capsys.readouterr()
    compare(seeds, alone, "--to", tmp_path / "page.html")
    said = capsys.readouterr().out
    of = json.loads((seeds / "seeds.json").read_text())["results"]["tiny_probe"]["model"]["distance"]
    assert f"{of['mean']:.3f} ±{of['spread']:.3f}" in line_of(said, "seeds: model")
    assert line_of(said, "train.accumulate") == ["1", "2"] and line_of(said, "seeds/seed-1")[0] == "1"
    assert said.splitlines()[-1] == f"page: {tmp_path / 'page.html'}"
    html = (tmp_path / "page.html").read_text("utf-8")
    assert html.count("data:image/svg") == 7, "an evaluation; loss, three terms, std, rank"


def test_names_are_short_but_never_a_number(tmp_path):
    paths = [tmp_path / "runs" / name for name in ("video/1", "video/2")]
    assert names_of(paths) == ["video/1", "video/2"]
    assert names_of([tmp_path / "runs/video/1", tmp_path / "runs/text/1"]) == ["video/1", "text/1"]
    assert names_of([tmp_path / "a", tmp_path / "runs/text/1"]) == ["a", "runs/text/1"]


def test_a_table_of_several_recipes():
    a, b, c = {"x": 1, "out": "a"}, {"x": 1, "y": {"z": None}}, {"x": 2, "out": "c"}
    assert differing([a, b, c]) == {"x": ["1", "1", "2"], "y.z": ["absent", "nothing (null)", "absent"]}
    assert differing([a, a]) == {}


# ---- curves ----


def rows(values):
    return [{"step": step, "loss": value} for step, value in values.items()]


def test_a_curve_of_seeds_is_their_mean_where_all_have_a_step():
    found = curve([rows({1: 1.0, 2: 2.0, 3: 9.0}), rows({1: 3.0, 2: 2.0, 4: 1.0}), []], "#123456", "loss")
    assert (found.x, found.y) == ([1, 2], [2.0, 2.0]) and found.spread == pytest.approx([2**0.5, 0])
    assert curve([rows({1: 1.0, 2: float("nan")}), rows({1: 1.0, 2: 1.0})], "#123456", "loss").x == [1]
    alone = curve([rows({1: 1.0, 5: 2.0})], "#123456", "loss")
    assert (alone.x, alone.y, alone.spread) == ([1, 5], [1.0, 2.0], None)


def test_a_band_is_drawn_around_a_mean():
    from vicjoint.report import plots

    x, y = list(range(2000)), list(np.linspace(100, 0.1, 2000))
    without, band = (
        plots.draw([plots.Curve("", "#123456", x, y, "-", spread)], None, log=True) for spread in (None, y)
    )
    assert b"fill: #123456" in band and b"fill: #123456" not in without


# ---- the page ----


def test_the_page_is_self_contained_and_escaped(make, tmp_path):
    one = make("one", probe=f"knn {NASTY}", announcement=f"SAMPLE {NASTY}")
    two = make("two", "source.rows=40", factor=0.5)
    (one / "metrics.jsonl").write_text(
        (one / "metrics.jsonl").read_text().replace("healthy: all is well", f"collapsed: {NASTY} \\u202e")
    )
    hostile = tmp_path / "x<i>y"
    two.rename(hostile)
    compare(one, hostile, "--to", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    assert not re.search(r'(src|href|action)\s*=\s*["\']?(?!data:|")', html), "a source that is not inlined"
    assert not re.search(r"<(script|link|iframe|object|base)\b|@import|https?://|url\(", html, re.IGNORECASE)
    assert "default-src 'none'" in html and html.replace("\n", "").isprintable()
    assert "<i>y" not in html and "x&lt;i&gt;y: model" in html
    assert "one: SAMPLE &lt;script&gt;" in html and "collapsed: &lt;script&gt;" in html and "\\u202e" in html
    assert "first &lt;script&gt;" in html, "what a metric means"
    assert "Not measured in x&lt;i&gt;y." in html and "Not measured in one." in html
    assert "Data or options of probes differ" in html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "page.html", "x<i>y"]


def test_the_best_of_a_column_is_bold_also_among_means(make, tmp_path):
    folders = [make(f"s{seed}", f"train.seed={seed}", top1=top1) for seed, top1 in ((0, 0.6), (1, 0.8))]
    compare(*folders, make("other", "optim.lr=0.5", top1=0.69), "--to", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    assert re.search(r's0 and 1 more: model</th>.*<td class="best">0.700 ±0.141</td>', html)
    assert "<td>0.690</td>" in html


def test_many_runs_have_colours_of_their_own(make, tmp_path):
    folders = [make(f"r{i}", f"optim.lr={i + 1}e-3") for i in range(11)]
    compare(*folders, "--to", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    assert len(set(re.findall(r'class="swatch" style="background:(#\w{6})"', html))) == 11


# ---- runs that are not finished, or broken ----


def test_what_is_not_finished_is_said(make, capsys, tmp_path):
    stopped = make("stopped", without=["spectrum.json", "evaluation.json"])
    later = make("later", "optim.lr=1", without=["evaluation.json"])
    begun = make("begun", "optim.lr=2", without=["spectrum.json", "evaluation.json", "metrics.jsonl"])
    whole = make("whole", "optim.lr=3")
    compare(stopped, later, begun, whole, "--to", tmp_path / "page.html")
    said = capsys.readouterr().out
    assert line_of(said, "stopped")[1] == "unfinished: 14 steps of 14"
    assert line_of(said, "later")[1] == f"14 steps, not evaluated: python -m vicjoint.evaluate {later}"
    assert line_of(said, "begun")[1] == "not begun: no step is written down"
    assert line_of(said, "whole: model")
    assert "unfinished: 14 steps of 14" in (tmp_path / "page.html").read_text("utf-8")
    compare(stopped, begun)
    assert "No run is evaluated yet." in capsys.readouterr().out


def test_seeds_that_are_not_evaluated_are_not_in_the_mean(make, capsys):
    folders = [make(f"s{i}", f"train.seed={i}", top1=i / 10) for i in range(3)]
    (folders[2] / "evaluation.json").unlink()
    compare(*folders)
    said = capsys.readouterr().out
    assert "s0 and 2 more: 2 of 3 seeds are evaluated, and only they are in its numbers" in said
    assert line_of(said, "model")[-1] == "0.050 ±0.071"


def test_probes_that_not_every_seed_has_are_named(make, capsys):
    one, two = make("s0"), make("s1", "train.seed=1")
    found = json.loads((two / "evaluation.json").read_text())
    (two / "evaluation.json").write_text(json.dumps(found | {"linear": found["knn"]}))
    compare(one, two)
    assert "s0 and 1 more: linear is not shown, since not every seed has it" in capsys.readouterr().out


def test_different_probes_are_said(make, capsys):
    compare(make("one"), make("two", "optim.lr=1", probe="linear"))
    said = capsys.readouterr().out.split("\nlinear\n")
    assert "not measured in two" in said[0] and "not measured in one" in said[1]


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("evaluation.json", "{broken", "one: evaluation.json cannot be shown (JSONDecodeError: "),
        ("evaluation.json", '{"knn": [1]}', "one: evaluation.json cannot be shown (it is not {probe: "),
        ("metrics.jsonl", "{broken", "one: metrics.jsonl cannot be shown (it has no lines yet)"),
    ],
)
def test_a_broken_file_costs_its_part_and_is_named(make, capsys, tmp_path, file, content, words):
    one, two = make("one"), make("two", "optim.lr=1")
    (one / file).write_text(content)
    compare(one, two, "--to", tmp_path / "page.html")
    assert words in capsys.readouterr().out
    assert f"one: {file} cannot be shown" in (tmp_path / "page.html").read_text("utf-8")


def test_odd_numbers_do_not_end_it(make, capsys):
    one, two = make("one", top1=float("nan")), make("two", "train.seed=1", top1=None)
    compare(one, two)
    assert line_of(capsys.readouterr().out, "model")[-1] == "nan"


# ---- folders that are no runs ----


def test_mistakes(make, tmp_path, capsys):
    one, two = make("runs/tiny/1"), make("runs/tiny/2", "optim.lr=1")
    broken = make("broken")
    (broken / "recipe.yaml").write_text("name: x\ntrain: {steps: many}\n")
    for given, words in (
        ([one, tmp_path / "none"], f"{tmp_path / 'none'}: no such folder. Expected a run folder, such as"),
        ([one, tmp_path], f"{tmp_path} is not a run, but holds some. Name them: {broken}"),
        ([one.parent, one], f"{one.parent} is not a run, but holds some. Name them: {one} {two}"),
        ([one, one / "." / "../1"], "given twice. Expected each run once."),
        ([one], f"only one run: {one}. Expected two or more, or a folder of --seeds."),
        ([one, broken], "train.steps: expected a whole number, got 'many'."),
    ):
        compare(*given, code=2)
        said = capsys.readouterr()
        assert words in said.err and not said.out and "Traceback" not in said.err
    compare(one, two, "--to", tmp_path / "no" / "page.html", code=2)
    assert "No such file or directory" in capsys.readouterr().err


def test_a_recipe_from_elsewhere_runs_no_code(make, capsys):
    one, two = make("one"), make("two", "optim.lr=1")
    for folder in (one, two):
        path = folder / "recipe.yaml"
        path.write_text(path.read_text().replace("imports: [tiny]", "imports: [this_is_not_imported]"))
    compare(one, two)
    assert "imports" not in capsys.readouterr().out
