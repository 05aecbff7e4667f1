"""The report page: self-contained, escaped, right numbers, pictures that decode, and no crash over a missing
or broken file."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from vicjoint.report import page, plots
from vicjoint.report.page import main, write_report
from vicjoint.report.tables import table

R1 = ["R@1: share of queries of which a right answer ranks first", "higher"]
OFFSET = ["mean distance in <i>frames</i>", "lower"]
NASTY = "<script>alert(1)</script>.mp4"
FILES = [
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "evaluation.jsonl",
    "evaluation.json",
    "spectrum.json",
    "pictures.npz",
    "bad_samples.jsonl",
]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def health(step):
    branch = {"std": 0.9 + step / 100, "dead_share": 0.1, "rank": 5.0 + step, "redundancy": 0.2}
    return {"health": {"a": branch, "b": branch, "alignment": 0.3}, "verdict": f"healthy: <u>{step}</u>"}


@pytest.fixture
def run(tmp_path):
    """A run folder in which every text that may come from data is hostile."""
    rng = np.random.default_rng(0)
    (tmp_path / "recipe.yaml").write_text(
        f"name: 'world {NASTY}'\nsource: {{name: '</pre>{NASTY}'}}\n", encoding="utf-8"
    )
    (tmp_path / "environment.json").write_text(
        json.dumps(
            {
                "command": f"run {NASTY}",
                "torch": "2.14",
                "threads": 2,
                "source": f"320 videos of {NASTY}",
                "announcement": f"sample {NASTY}",
                "terms": ["invariance", "weird$term<i>"],
                "parameters": {"a": {"encoder": 1234567, "expander": 89}},
                "metrics": {f"next {NASTY}": {"r1": R1, "offset": OFFSET, "skill": ["skill <i>", "higher"]}},
            }
        )
    )
    lines(
        tmp_path / "metrics.jsonl",
        [
            {
                "step": s,
                "loss": float("nan") if s == 7 else 20.0 / s,
                "invariance": 1.0,
                "weird$term<i>": 0.0,
                "lr": 1e-3,
                "seconds": s * 0.1,
                "samples_per_second": 500.0,
                **(health(s) if s % 10 == 0 else {}),
            }
            for s in range(1, 41)
        ],
    )
    table = {
        "chance": {"r1": 0.042, "offset": 8.0},
        "random_init": {"r1": 0.0526, "offset": 7.5, "novel": 0.7},
        "model": {"r1": 0.58512, "offset": 1.25, "novel": 0.9, "skill": None},
        NASTY: {"r1": 0.1, "offset": 0.5, "novel": 0.9},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps({f"next {NASTY}": table}))
    lines(tmp_path / "evaluation.jsonl", [{"step": s, "results": {f"next {NASTY}": table}} for s in (20, 40)])
    (tmp_path / "spectrum.json").write_text(json.dumps({"a": [3.0, 0.1, 1e-19, 0.0], "b": [2.0, 1.0, 0.5]}))
    context, (retrieved, target) = (
        rng.integers(0, 256, (n, m, 16, 24, 3), np.uint8) for n, m in ((3, 4), (2, 3))
    )
    np.savez(
        tmp_path / "pictures.npz",
        context=context,
        retrieved=retrieved,
        target=target,
        title=np.array([NASTY, "二.mp4", "c"]),
        good=np.array([True, False, True]),
    )
    bad = [{"source": "video_folder", "sample": f"{i}{NASTY}\udcff", "cause": "cut <off>"} for i in range(25)]
    lines(tmp_path / "bad_samples.jsonl", bad)
    return tmp_path


def text(folder):
    return write_report(folder).read_text(encoding="utf-8")


def images(html):
    return [
        (kind, base64.b64decode(content))
        for kind, content in re.findall(r'src="data:image/([a-z+]+);base64,([^"]+)"', html)
    ]


def test_nothing_is_left_out_and_nothing_comes_from_outside(run):
    html = text(run)
    assert "left out" not in html
    assert not re.search(r'(src|href|action)\s*=\s*["\']?(?!data:|")', html), "a source that is not inlined"
    assert not re.search(r"<(script|link|iframe|object|base)\b|@import|https?://|url\(", html, re.IGNORECASE)
    assert not list(run.glob("*.tmp")) and sorted(p.name for p in run.iterdir()) == sorted(
        [*FILES, "report.html"]
    )


def test_a_row_that_no_model_can_reach_is_not_the_best():
    rows = {"model": {"r1": 0.5}, "ceiling": {"r1": 1.0}}
    found = page.metric_table("probe", rows, {"r1": "r1"}, {"r1": ("", "higher")})["rows"]
    assert [(name, cells[0][2]) for name, cells in found] == [("model", True), ("ceiling", False)]


def test_text_from_data_is_escaped(run):
    html = text(run)
    assert (
        "<script" not in html
        and "<u>40</u>" not in html
        and "<off>" not in html
        and "weird$term<i>" not in html
    )
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;.mp4") >= 10, "shown, not dropped"
    assert "healthy: &lt;u&gt;40&lt;/u&gt; (step 40)" in html and 'badge healthy">healthy' in html
    assert f'<p class="banner">sample {NASTY.replace("<", "&lt;").replace(">", "&gt;")}</p>' in html


def test_control_characters_in_texts_are_harmless(run):
    for name in ("environment.json", "evaluation.json"):
        path = run / name
        path.write_text(path.read_text("utf-8").replace("alert(1)", r"\u001b[31m\u202e"), encoding="utf-8")
    (run / "recipe.yaml").write_text('name: "one\\e[31m\\ntwo"', encoding="utf-8")
    lines(run / "bad_samples.jsonl", [{"source": "a\x1b[31m", "sample": "b\nc", "cause": None}])
    html = text(run)
    assert html.replace("\n", "").isprintable()
    assert "left out" not in html
    assert r"<h1>one\x1b[31m\ntwo</h1>" in html and r"<td>a\x1b[31m</td><td>b\nc</td>" in html
    assert html.count(r"&lt;script&gt;\x1b[31m\u202e&lt;/script&gt;") >= 5, "shown, not dropped"


def test_table_shows_model_first_and_the_best_of_each_column_in_bold(run):
    html = text(run)
    table = re.search(r'<table class="numbers">(.*?)</table>', html, re.S).group(1)
    rows = re.findall(r"<tr[^>]*><th>(.*?)</th>(.*?)</tr>", table)[1:]
    cells = {name: re.findall(r"<td([^>]*)>(.*?)</td>", row) for name, row in rows}
    assert [name for name, _ in rows][:3] == ["model", "random_init", "chance"]
    best, plain = ' class="best"', ""
    assert cells["model"] == [(best, "0.585"), (plain, "1.250"), (plain, "0.900"), (plain, "–")]
    assert cells["random_init"] == [(plain, "0.053"), (plain, "7.500"), (plain, "0.700"), (plain, "–")]
    assert rows[3][0].startswith("&lt;script") and cells[rows[3][0]][1:3] == [
        (best, "0.500"),
        (plain, "0.900"),
    ], "nothing is best where environment.json says nothing about a metric"
    assert "offset</abbr> ↓" in table and "r1</abbr> ↑" in table and "novel</abbr> </th>" in table
    assert "<dd>mean distance in &lt;i&gt;frames&lt;/i&gt;</dd>" in html and "<dt>novel" not in html
    assert html.count('title="not described here"') == 1


def test_pictures_decode_to_the_frames_and_stand_under_their_headings(run):
    html = text(run)
    good, bad = html.split("<h4>Good cases</h4>")[1].split("<h4>Bad cases</h4>")
    bad = bad.split("<h2>")[0]
    assert len(images(good)) == 2 * 6 and len(images(bad)) == 6 and "二.mp4" in bad
    decoded = [np.asarray(Image.open(io.BytesIO(content))) for _, content in images(bad)]
    arrays = np.load(run / "pictures.npz")
    assert np.array_equal(decoded, [*arrays["context"][1], arrays["retrieved"][1], arrays["target"][1]])
    assert 'class="crisp mark-red" width="144" height="96"' in bad and "mark-red" not in good


def test_pictures_of_several_probes_stand_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    case = {
        "neighbours": rng.integers(0, 256, (2, 3, 8, 8, 3), np.uint8),
        "right": np.array([[True, False, True], [False, False, True]]),
        "good": np.array([True, False]),
        "title": np.array([NASTY, "second"]),
        "captions": np.array([NASTY, "retrieved"]),
    }
    knn = {key: value for key, value in case.items() if key != "right"} | {
        "query": rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    }
    np.savez(
        tmp_path / "pictures.npz",
        **{f"knn/{k}": v for k, v in knn.items()},
        **{f"retrieval {NASTY}/{k}": v for k, v in case.items()},
    )
    html = text(tmp_path).split("<h2>Pictures</h2>")[1].split("<h2>")[0]
    of_knn, of_retrieval = html.split("<h3>knn</h3>")[1].split("<h3>retrieval &lt;script")
    assert "<script" not in html and len(images(of_knn)) == 2 * 4 and len(images(of_retrieval)) == 2 * 3
    assert (
        NASTY.replace("<", "&lt;").replace(">", "&gt;") + "</figcaption>" in of_knn
        and ">retrieved</figcaption>" in of_retrieval
    )
    marks = re.findall(r'class="crisp ?([a-z-]*)"', of_retrieval)
    assert marks == ["mark-green", "", "mark-green", "mark-red", "", "mark-green"]
    assert re.findall(r'class="crisp ?([a-z-]*)"', of_knn) == [
        "",
        "mark-green",
        "",
        "",
        "",
        "mark-red",
        "",
        "",
    ]


RETRIEVAL = {
    "model": {
        "a_to_b_r1": 0.5,
        "a_to_b_median_rank": 2.0,
        "b_to_a_r1": 0.25,
        "b_to_a_median_rank": 3.0,
        "penalty": 1e-6,
    },
    "chance": {"a_to_b_r1": 0.01, "a_to_b_median_rank": 51.5, "b_to_a_r1": 0.02, "b_to_a_median_rank": 51.5},
}
RETRIEVAL_METRICS = {"r1": R1, "median_rank": ["rank in the middle", "lower"], "penalty": ["as chosen", None]}


def described(folder, **metrics):
    (folder / "environment.json").write_text(json.dumps({"metrics": metrics}))


def test_retrieval_is_shown_one_direction_at_a_time(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"retrieval": RETRIEVAL}))
    described(tmp_path, retrieval=RETRIEVAL_METRICS)
    html = text(tmp_path)
    to_b, to_a = html.split("<h4>a to b</h4>")[1].split("<h4>b to a</h4>")
    assert (
        '<td class="best">0.500</td><td class="best">2.000</td>' in to_b
        and '<td class="best">0.250</td>' in to_a
    )
    assert "median_rank</abbr> ↓" in to_b and html.count("<dt>r1</dt>") == 1 and "a_to_b" not in html
    assert "<td>1e-06</td>" in to_a, "a setting is neither best nor rounded to zero"


def test_directions_and_curves_have_the_names_of_the_branches(tmp_path):
    probe, pair = "retrieval video-<i>", "video-<i>"
    (tmp_path / "environment.json").write_text(
        json.dumps({"pairs": {pair: ["video", "<i>"], "broken": 3}, "probes": {probe: ["video", "<i>"]}})
    )
    (tmp_path / "evaluation.json").write_text(json.dumps({probe: RETRIEVAL}))
    lines(tmp_path / "evaluation.jsonl", [{"step": s, "results": {probe: RETRIEVAL}} for s in (5, 6)])
    lines(tmp_path / "metrics.jsonl", [{"step": s, "pair": pair, "loss": 1.0, **health(s)} for s in (1, 2)])
    case = np.zeros((1, 2, 8, 8, 3), np.uint8)
    np.savez(
        tmp_path / "pictures.npz",
        **{
            f"{probe}/{key}": value
            for key, value in {
                "neighbours": case,
                "good": np.array([False]),
                "title": np.array(["one"]),
                "captions": np.array(["query, {b}", "retrieved, {a}"]),
            }.items()
        },
    )
    html = text(tmp_path)
    assert (
        "<h4>video to &lt;i&gt;</h4>" in html
        and "<h4>&lt;i&gt; to video</h4>" in html
        and "a to b" not in html
        and "<i>" not in html
    )
    assert "</i>video to &lt;i&gt; r1</span>" in html and "</i>&lt;i&gt; to video r1</span>" in html
    assert html.count("</i>video</span>") == html.count("</i>&lt;i&gt;</span>") == 4, (
        "std, dead_share, rank, redundancy"
    )
    assert (
        "<figcaption>retrieved, video</figcaption>" in html
        and "red a wrong one in the first place" in html
        and "cannot be shown" not in html
    )
    assert "pairs" not in html.split("What ran")[1].split("</table>")[0]
    assert table(RETRIEVAL, ("video", "words")).splitlines()[3].startswith("words to video  ")


def test_a_legend_says_what_its_probe_measures_and_says_it_once(tmp_path):
    (tmp_path / "evaluation.json").write_text(
        json.dumps({"x": RETRIEVAL, "y": RETRIEVAL, "frames": {"model": {"r1": 0.5, "copy_rate": 0.1}}})
    )
    of_frames = {"r1": ["R@1 among frames", "higher"], "copy_rate": ["copies", "lower"]}
    described(tmp_path, x=RETRIEVAL_METRICS, y=RETRIEVAL_METRICS, frames=of_frames)
    html = text(tmp_path)
    x, y, frames = (
        html.split(f"<h3>{name}</h3>")[1].split("<h3>")[0].split("<h2>")[0] for name in ("x", "y", "frames")
    )
    assert x.count(f"<dt>r1</dt><dd>{R1[0]}</dd>") == 1 and "<dl>" not in y
    assert f'<abbr title="{R1[0]}">r1</abbr> ↑' in y and "R@1 among frames" not in x + y
    assert "<dt>r1</dt><dd>R@1 among frames</dd>" in frames and "copy_rate</abbr> ↓" in frames
    assert html.count("Bold: best of the column") == 1


@pytest.mark.parametrize("environment", [{"torch": "2.14"}, {"metrics": {"retrieval": {}}}, {"metrics": 3}])
def test_an_environment_that_explains_no_metrics_gives_numbers_alone(tmp_path, environment):
    (tmp_path / "evaluation.json").write_text(json.dumps({"retrieval": RETRIEVAL}))
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    section = text(tmp_path).split("<h2>Results</h2>")[1].split("<h2>")[0]
    assert "<td>0.500</td><td>2.000</td>" in section and "<td>1e-06</td>" in section
    assert section.count('title="not described here"') == 5 and "<dl>" not in section
    assert "best" not in section.split("</p>", 1)[1] and not re.search("</abbr> [↑↓]", section)


def test_a_single_step_is_drawn_among_whole_steps(monkeypatch):
    drawn, original = [], plots.Figure.savefig
    monkeypatch.setattr(
        plots.Figure, "savefig", lambda self, *a, **k: (drawn.append(self.axes[0]), original(self, *a, **k))
    )
    plots.draw([plots.Curve("", "#000", [3], [0.5])], None, False)
    assert drawn[0].get_xlim() == (2, 4) and all(tick == round(tick) for tick in drawn[0].get_xticks())


def test_the_terminal_table():
    assert table(RETRIEVAL).splitlines() == [
        "a to b         r1  median_rank",
        "model       0.500        2.000",
        "chance      0.010       51.500",
        "b to a         r1  median_rank",
        "model       0.250        3.000",
        "chance      0.020       51.500",
        "          penalty",
        "model       1e-06",
        "chance          -",
    ]
    wide = {"model": {"r2": -45286775.418, "mae": 1.0}, "chance": {"r2": 0.0, "mae": 123456789.5}}
    assert [line.split() for line in table(wide).splitlines()] == [
        ["r2", "mae"],
        ["model", "-45286775.418", "1.000"],
        ["chance", "0.000", "123456789.500"],
    ]


def test_large_frames_are_shrunk_and_not_pixelated():
    shown = plots.frame(np.zeros((360, 640, 3), np.uint8), 72)
    assert (shown["style"], shown["width"], shown["height"]) == ("", 72, 40)
    content = base64.b64decode(shown["uri"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(content)).size == (144, 80), "twice for dense screens"


def test_plots_are_svg_without_text_from_data(run):
    plots = [content.decode() for kind, content in images(text(run)) if kind == "svg+xml"]
    assert len(plots) == 11, "loss, terms, 4 branch healths, alignment, lr, speed, evaluation, spectrum"
    assert all(
        p.rstrip().endswith("</svg>") and "currentColor" in p and "weird" not in p and "script" not in p
        for p in plots
    )
    assert "prefers-color-scheme" in plots[0]


def test_each_pair_has_its_own_curves_and_verdict(tmp_path):
    pairs = ["video-<u>audio</u>", "video-text"]
    lines(
        tmp_path / "metrics.jsonl",
        [
            {
                "step": s,
                "pair": pairs[s % 2],
                "loss": 10.0 + s % 2,
                "invariance": 1.0,
                "lr": 1e-3,
                "samples_per_second": 5.0,
                **(health(s) if s > 38 else {}),
            }
            for s in range(41)
        ],
    )
    html = text(tmp_path)
    assert (
        "<u>audio" not in html
        and html.count("<h3>video-&lt;u&gt;audio&lt;/u&gt;</h3>") == html.count("<h3>video-text</h3>") == 1
    )
    assert len([kind for kind, _ in images(html) if kind == "svg+xml"]) == 2 * 7 + 2, (
        "loss, terms, 4 branch healths, alignment; lr, speed"
    )
    assert (
        "video-text: healthy: &lt;u&gt;39&lt;/u&gt; (step 39)" in html
        and "audio&lt;/u&gt;: healthy: &lt;u&gt;40&lt;/u&gt; (step 40)" in html
    )
    assert (
        "loss of video-text, first and last<b>11 → 11</b>" in html
        and "audio&lt;/u&gt;, first and last<b>10 → 10</b>" in html
    )


def test_bad_samples_are_counted_and_the_first_twenty_shown(run):
    section = text(run).split("<h2>Bad samples</h2>")[1].split("<h2>")[0]
    assert (
        "25 could not be read" in section and section.count("<tr>") == 1 + 20 and "cut &lt;off&gt;" in section
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [None, b"", b"\xff{[<i>broken", b"[1, 2]\n", b'{"step": 1, "results": 3, "a": 3}\n']
)
def test_a_missing_or_broken_file_costs_its_part_only(run, name, content, monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: b"<svg></svg>")  # drawing is slow and is tested above
    (run / name).unlink() if content is None else (run / name).write_bytes(content)
    html = text(run)
    if content is None:
        assert f"{name} is not there, so" in html
    assert "<i>broken" not in html and html.count("left out.") <= 2 and html.endswith("</html>\n")
    assert len(images(html)) >= 9, "the other parts are there"


def test_an_empty_folder_gives_a_page_of_sentences(tmp_path):
    html = text(tmp_path)
    assert f"<h1>{tmp_path.name}</h1>" in html and all(f"{name} is not there" in html for name in FILES)


@pytest.mark.parametrize(
    "words, badge",
    [
        ("healthy: fine", "healthy"),
        ("collapsed: branch a", "collapsed"),
        ("redundant: a", "watch"),
        ("nearly collapsed: a; redundant: b", "watch"),
        ("nearly collapsed: a; collapsed: b", "collapsed"),
    ],
)
def test_badge_follows_the_last_verdict(tmp_path, words, badge):
    lines(
        tmp_path / "metrics.jsonl",
        [{"step": 1, "verdict": "collapsed: at first"}, {"step": 2, "verdict": words}, {"step": 3}],
    )
    assert f'badge {badge}">' in text(tmp_path)


def test_a_resumed_run_shows_each_step_once(tmp_path):
    lines(tmp_path / "m.jsonl", [{"step": 1, "loss": 1}, {"step": 2, "loss": 2}, {"step": 2, "loss": 3}])
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert plots.series(page.read_steps(tmp_path / "m.jsonl"), "loss") == ([1, 2], [1, 3])


def test_thinning_keeps_the_peaks():
    y = np.zeros(50_000)
    y[12_345], y[40_000], y[7] = 9.0, -3.0, np.inf
    x, thinned = plots.thin(np.arange(50_000), y)
    assert (
        len(x) <= plots.MAX_POINTS
        and thinned[x == 12_345] == 9
        and thinned[x == 40_000] == -3
        and np.isnan(thinned[x == 7])
    )


def test_command_line(run, capsys):
    assert main([str(run)]) == 0 and capsys.readouterr().out.strip() == str(run / "report.html")
    assert main([str(run / "nowhere")]) == 2
    assert "is not a folder. Expected a run folder" in capsys.readouterr().err


def test_a_failed_write_keeps_the_old_page(run, monkeypatch):
    (run / "report.html").write_text("old")
    monkeypatch.setattr(page, "page", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(run)
    assert (run / "report.html").read_text() == "old"


def test_intervals_stand_below_their_numbers_and_not_in_columns(tmp_path):
    rows = {
        "model": {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.625, "rate": 1.0},
        "chance": {"accuracy": 0.25, "accuracy_low": 0.25, "accuracy_high": 0.25},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps({"knn": rows}))
    html = text(tmp_path)
    assert "0.500<small>[0.400, 0.625]</small>" in html and "accuracy_low" not in html
    assert ">0.250</td>" in html and "1,000 draws" in html
    said = table(rows).splitlines()
    assert said[0].split() == ["accuracy", "rate"] and "0.500 [0.400, 0.625]" in said[1]
    many = {"model": rows["model"] | {f"other{i}": 0.0 for i in range(9)}}
    assert "0.500" in table(many) and "[" not in table(many)
