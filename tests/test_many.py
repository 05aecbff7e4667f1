"""Several pairs in one run, over branches that they share: turns, resume, two processes, probes of every two
branches, exports."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torchrun import torchrun

import vicjoint
from vicjoint import data
from vicjoint.evaluate import main as evaluate_command
from vicjoint.export import main as export_command
from vicjoint.model import build_model
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.run import main as run_command
from vicjoint.training import checkpoint
from vicjoint.training.build import build_parts

ROOT = Path(__file__).resolve().parents[1]

# a module of a user's own, which a recipe imports: rows of numbers in text, one modality, and pairs that read
# two columns
PARTS = '''
import numpy as np
import torch
from torch import nn
from vicjoint.parts import Modality, Pair, Probe, Source
from vicjoint.registry import register, register_encoder


@register("source", "many_rows")
class Rows(Source):
    """Columns x, y, z: three linear functions of one hidden vector.

    `broken`: so many rows whose x cannot be read."""

    def __init__(self, rows: int = 24, broken: int = 0):
        rng = np.random.default_rng(3)
        hidden = rng.normal(size=(rows + 8, 4))
        columns = {name: hidden @ rng.normal(size=(4, 6)) for name in ("x", "y", "z")}
        text = lambda row: " ".join(f"{v:.4f}" for v in row)
        cells = lambda i: {name: text(c[i]) for name, c in columns.items()}
        records = [{"id": f"row{i}", **cells(i)} for i in range(rows + 8)]
        for record in records[:broken]:
            record["x"] = "broken"
        self.train, self.test = records[:rows], records[rows:]

    def describe(self):
        return f"{len(self.train)} rows of numbers"


@register("modality", "many_numbers")
class Numbers(Modality):
    reads, reading = "text", ("scale", "size")

    def __init__(self, scale: float = 1.0, size: int = 6):
        super().__init__()
        self.scale = scale
        self.register_buffer("mean", torch.zeros(size), persistent=False)

    def read(self, value, rng=None, window=None):
        noise = 0 if rng is None else 0.1 * torch.from_numpy(rng.normal(size=len(self.mean)))
        numbers = torch.tensor([[float(v) for v in value.split()]], dtype=torch.float64)
        return (self.scale * numbers + noise).float()

    def forward(self, raw):
        return raw - self.mean


@register_encoder("many_numbers", "line")
class Line(nn.Module):
    """Without batch norm, so that two processes compute what one does."""

    def __init__(self, dim: int = 12, inputs: int = 6):
        super().__init__()
        self.dim = dim
        self.net = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, dim))

    def forward(self, view):
        return self.net(view)


@register("pair", "many_columns")
class Columns(Pair):
    uses_readers = True

    def __init__(self, a: str, b: str, key: str | None = None):
        self.a, self.b, self.key = a, b, key

    def sample(self, record, rng):
        return self.readers[0].read(record[self.a], rng), self.readers[1].read(record[self.b], rng)


@register("pair", "many_itself")
class Itself(Pair):
    """Reads without the modality."""

    def __init__(self, size: int = 6):
        self.size = size

    def sample(self, record, rng):
        one = torch.tensor([[float(v) for v in record["x"].split()]])
        return one, one + 0.1 * torch.from_numpy(rng.normal(size=one.shape)).float()


class Nearest(Probe):
    def measure(self, features):
        """Share of test rows whose embedding by b is nearest to that by a; and where the columns begin."""
        data = features.data
        read = [data.pair.sample(record, np.random.default_rng(0)) for record in data.records("test")]
        a, b = (torch.cat(views) for views in zip(*read))
        for row in ("model", "random_init"):
            z = lambda side, x: features.embed(row, side, features.represent(row, side, [x]))
            z_a, z_b = z("a", a), z("b", b)
            nearest = torch.cdist(z_a, z_b).argmin(1)
            yield f"{row}/a_to_b_r1", float((nearest == torch.arange(len(nearest))).double().mean())
        yield "model/a0", float(a[0, 0])
        yield "model/b0", float(b[0, 0])


@register("probe", "many_retrieval")
class Retrieval(Nearest):
    scope = "every_two"


@register("probe", "many_first")
class First(Nearest):
    pass


@register("probe", "many_look")
class Look(Probe):
    scope = "branch"

    """Where the test rows of one branch begin, and the first weight of the encoder that sees them."""

    def __init__(self, branch: str = "a", scale: float = 1.0):
        self.branch, self.scale = branch, scale

    def misses(self, data):
        return "negative" if self.scale < 0 else None

    def measure(self, features):
        pair, side = features.data.pair, self.branch
        raw = pair.readers["ab".index(side)].read(features.data.records("test")[0][getattr(pair, side)])
        yield "model/begins", float(raw[0, 0])
        yield "model/first", float(features.represent("model", side, [raw])[0][0, 0])
'''


@pytest.fixture(scope="module", autouse=True)
def user_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "many_parts.py").write_text(PARTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        importlib.import_module("many_parts")
        yield folder


def branch(**options) -> dict:
    return {"modality": "many_numbers", "encoder": {"name": "line"}, "expander": [10], **options}


def columns(a: str, b: str, **options) -> dict:
    return {"name": "many_columns", "a": a, "b": b, **options}


def recipe(**changes) -> dict:
    return {
        "name": "many",
        "imports": ["many_parts"],
        "source": {"name": "many_rows"},
        "branches": {"video": branch(), "audio": branch(), "text": branch()},
        "pairs": [
            {"a": "video", "b": "audio", "pair": columns("x", "y")},
            {"a": "video", "b": "text", "pair": columns("x", "z")},
        ],
        "objective": {"name": "vicreg"},
        "optim": {"name": "lars", "lr": 2.0, "schedule": {"name": "constant"}},
        "train": {"steps": 6, "batch_size": 8},
        "data": {"workers": 0},
        "evaluate": {"probes": [{"name": "many_retrieval"}, {"name": "many_first"}]},
        "checkpoint": {"every": 3},
        **changes,
    }


def one_pair(**changes) -> dict:
    made = recipe()
    del made["branches"], made["pairs"]
    return {**made, "pair": columns("x", "y"), "a": branch(), "b": branch(), **changes}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder: Path, step: int = 6) -> dict:
    return checkpoint.load(checkpoint.path_of(folder / "checkpoints", step))


def test_pairs_take_turns_and_everything_is_named(tmp_path, capsys):
    folder = vicjoint.train(
        recipe(),
        [
            f"out={tmp_path / 'run'}",
            "train.steps=60",
            "evaluate.every=30",
            "pairs.1.objective={name: vicreg, covariance: 0}",
        ],
    )
    steps = lines(folder)
    assert [s["pair"] for s in steps] == ["video-audio", "video-text"] * 30
    for s in steps:
        assert s["loss"] == pytest.approx(s["invariance"] + s["variance"] + s["covariance"], rel=1e-5)
        assert (s["covariance"] == 0) == (s["pair"] == "video-text"), "each pair has its own objective"
    assert [(s["step"], s["pair"]) for s in steps if "health" in s] == [
        (39, "video-audio"),
        (40, "video-text"),
        (59, "video-audio"),
        (60, "video-text"),
    ]
    assert (
        steps[-1]["invariance"] < 0.8 * steps[1]["invariance"]
        and steps[-2]["invariance"] < 0.8 * steps[0]["invariance"]
    )

    results = json.loads((folder / "evaluation.json").read_text())
    assert list(results) == [
        "many_retrieval video-audio",
        "many_retrieval video-text",
        "many_retrieval audio-text",
        "many_first video-audio",
    ]
    assert set(results["many_retrieval audio-text"]) == {"model", "random_init"}
    environment = json.loads((folder / "environment.json").read_text())
    assert (
        list(environment["parameters"]) == ["video", "audio", "text"]
        and environment["source"] == "24 rows of numbers"
    )
    assert list(json.loads((folder / "spectrum.json").read_text())) == ["video", "audio", "text"]
    assert environment["pairs"] == {"video-audio": ["video", "audio"], "video-text": ["video", "text"]}
    assert environment["probes"]["many_retrieval audio-text"] == ["audio", "text"]
    page, said = (folder / "report.html").read_text(), capsys.readouterr()
    assert page.count('<i style="background:#e8842c"></i>text</span>') == 4, "health of video-text"
    assert all(page.count(f"<h3>{pair}</h3>") == 1 for pair in ("video-audio", "video-text", "All pairs"))
    assert (
        page.count('alt="Loss"') == page.count('alt="Alignment"') == 2
        and page.count('alt="Learning rate"') == 1
    )
    assert (
        "video-text: " in page.split("Results")[0]
        and "loss of video-audio, first and last" in page
        and "cannot be shown" not in page
    )
    assert (
        'alt="many_retrieval audio-text"' in page and "many_retrieval audio-text after 60 steps" in said.out
    )
    assert "video-audio=" in said.err and "video-text=" in said.err, (
        "the progress bar has the loss of each pair"
    )


def test_probes_look_at_any_branch_under_names_of_their_own(tmp_path, capsys):
    probes = [
        {"name": "many_look"},
        {"name": "many_look", "branch": "text", "as": "words"},
        {"name": "many_look", "branch": "audio", "as": "sounds"},
        {"name": "many_retrieval", "as": "found"},
        {"name": "many_look", "branch": "text", "scale": -1, "as": "nothing"},
    ]
    parts = build_parts(load_recipe(recipe(evaluate={"probes": probes})))
    assert [m.name for m in parts.evaluation.measures] == [
        "many_look video-audio",
        "words",
        "sounds",
        "found video-audio",
        "found video-text",
        "found audio-text",
    ]
    assert capsys.readouterr().out.splitlines()[1:] == ["probe nothing is left out: negative"]
    row = parts.tasks[0].source.test[0]
    results, _ = parts.evaluation(parts.model, parts.untrained)
    looks = ("many_look video-audio", "words", "sounds")
    for name, branch_name, column in zip(looks, ("video", "text", "audio"), "xzy"):
        seen, raw = results[name]["model"], torch.tensor([[float(v) for v in row[column].split()]])
        assert seen["begins"] == pytest.approx(raw[0, 0].item(), abs=1e-6), branch_name
        y = parts.model.branches[branch_name].represent(raw)
        assert seen["first"] == pytest.approx(y[0, 0].item(), rel=1e-5), branch_name

    unnamed = build_parts(load_recipe(recipe(evaluate={"probes": [{"name": "many_look", "branch": "text"}]})))
    assert [m.name for m in unnamed.evaluation.measures] == ["many_look text"]
    with pytest.raises(
        RecipeError,
        match="evaluate.probes.0.branch: no branch 'txt'. Did you mean 'text'. Branches: video, audio, text.",
    ):
        load_recipe(recipe(evaluate={"probes": [{"name": "many_look", "branch": "txt"}]}))
    with pytest.raises(RecipeError, match="evaluate.probes.0.branch: no branch 'text'. Branches: a, b."):
        load_recipe(one_pair(evaluate={"probes": [{"name": "many_look", "branch": "text"}]}))


def test_a_probe_is_listed_twice_in_a_recipe_of_one_pair(tmp_path):
    made = one_pair(
        evaluate={"probes": [{"name": "many_look"}, {"name": "many_look", "as": "other", "branch": "b"}]}
    )
    folder = vicjoint.train(made, [f"out={tmp_path / 'run'}", "train.steps=1"])
    results = json.loads((folder / "evaluation.json").read_text())
    assert list(results) == ["many_look", "other"] and results["many_look"] != results["other"]
    assert (
        evaluate_command([str(folder)]) == 0
        and json.loads((folder / "evaluation.json").read_text()) == results
    )


def test_a_branch_without_a_part_in_a_step_stays_as_it_is(tmp_path):
    folder = vicjoint.train(recipe(), [f"out={tmp_path / 'run'}", "train.steps=1", "evaluate.probes=[]"])
    untrained, trained = build_parts(load_recipe(recipe())).model.state_dict(), state(folder, 1)["model"]
    assert {name.split(".")[1] for name in trained if not torch.equal(trained[name], untrained[name])} == {
        "video",
        "audio",
    }


def test_weight_is_a_factor_of_the_loss_and_its_terms(tmp_path):
    light, heavy = (
        vicjoint.train(
            recipe(),
            [f"out={tmp_path / str(w)}", "train.steps=2", "evaluate.probes=[]", f"pairs.1.weight={w}"],
        )
        for w in (1, 3)
    )
    assert lines(heavy)[0]["loss"] == lines(light)[0]["loss"]
    assert all(
        lines(heavy)[1][term] == pytest.approx(3 * lines(light)[1][term], rel=1e-5)
        for term in ("loss", "invariance", "covariance")
    )


def test_a_stopped_run_of_several_pairs_is_resumed_exactly(tmp_path):
    learnt = recipe(
        objective={"name": "infonce", "learnable": True},
        optim={"name": "adamw", "lr": 1e-2, "schedule": {"name": "constant"}},
    )
    whole = vicjoint.train(learnt, [f"out={tmp_path / 'whole'}"])
    stopped = vicjoint.train(learnt, [f"out={tmp_path / 'stopped'}"])
    # as if it had been killed after its checkpoint at step 3, in the middle of a round
    shutil.rmtree(stopped / "checkpoints" / "step_00000006")
    assert vicjoint.train(learnt, [f"out={stopped}"]) == stopped
    ends = [state(folder) for folder in (whole, stopped)]
    assert all(torch.equal(a, b) for a, b in zip(ends[0]["model"].values(), ends[1]["model"].values()))
    objectives = [[end["objective"], *end["further_objectives"]] for end in ends]
    assert [len(o) for o in objectives] == [2, 2]
    for a, b in zip(*objectives):
        assert a.keys() == b.keys() and a and all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(v, objectives[0][1][key]) for key, v in objectives[0][0].items()), (
        "each pair learns its own temperature"
    )
    for a, b in zip(ends[0]["optimizer"]["state"].values(), ends[1]["optimizer"]["state"].values()):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert [(s["pair"], s["loss"]) for s in lines(whole)] == [(s["pair"], s["loss"]) for s in lines(stopped)]


def test_each_pair_has_its_own_order_whatever_the_workers():
    parts, alone = build_parts(load_recipe(recipe())), build_parts(load_recipe(one_pair()))
    everything = [(batch.samples, batch.a, batch.b) for batch, _ in parts.batches(0, 0, 8)]
    of_one = [(batch.samples, batch.a, batch.b) for batch, _ in alone.batches(0, 0, 4)]
    same = lambda x, y: (
        len(x) == len(y)
        and all(p[0] == q[0] and torch.equal(p[1], q[1]) and torch.equal(p[2], q[2]) for p, q in zip(x, y))
    )
    assert same(everything[::2], of_one), "the first pair's batches are those of a run of one pair"
    for number in (0, 1):
        first_epoch = [name for samples, *_ in everything[number::2][:3] for name in samples]
        assert sorted(first_epoch) == sorted(f"row{i}@0" for i in range(24)), (
            "an epoch of each pair has every record once"
        )
    assert [s for s, *_ in everything[::2]] != [s for s, *_ in everything[1::2]]
    assert same(everything[3:], [(batch.samples, batch.a, batch.b) for batch, _ in parts.batches(2, 3, 8)])
    # equal records of two streams have crops of their own
    streams = [parts.stream(task) for task in parts.tasks]
    assert not torch.equal(
        streams[0].pair.sample(streams[0].records[0], streams[0].generator(0, 0, 1))[0],
        streams[1].pair.sample(streams[0].records[0], streams[1].generator(0, 0, 1))[0],
    )


def test_epochs_are_those_of_the_pair_with_the_longest(tmp_path):
    made = recipe(train={"epochs": 2, "batch_size": 8})
    made["pairs"][1]["source"] = {"name": "many_rows", "rows": 50}
    parts = build_parts(load_recipe(made))
    assert parts.steps == 2 * 13 and parts.steps_per_epoch == 2 * 50 / 8  # 100 records in batches of 8, twice


@pytest.mark.parametrize("overrides", [[], ["train.accumulate=2"]], ids=["whole", "parts"])
def test_two_processes_with_different_data_do_what_one_does(user_folder, tmp_path, overrides):
    run = ["evaluate.probes=[]", "train.steps=5", *overrides]
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe()))
    one = vicjoint.train(recipe(), [f"out={tmp_path / 'one'}", *run])
    done = torchrun(tmp_path, 2, "-m", "vicjoint.run", "recipe.yaml", "out=two", *run, path=[user_folder])
    assert "find_unused_parameters" not in done.stderr
    of_one, of_two = lines(one), lines(tmp_path / "two")
    assert [s["pair"] for s in of_two] == [s["pair"] for s in of_one]
    assert [s["loss"] for s in of_two] == pytest.approx([s["loss"] for s in of_one], rel=1e-5)
    start = build_parts(load_recipe(recipe())).model.state_dict()
    weights = [state(folder, 5)["model"] for folder in (one, tmp_path / "two")]
    for name, value in weights[0].items():
        moved = float((value - start[name]).norm())
        assert moved > 0 and float((weights[1][name] - value).norm()) < 1e-4 * moved, name


def test_readers_are_shared_by_the_pairs_of_a_branch_and_no_part_of_the_model():
    made = recipe()
    made["branches"]["audio"]["modality"] = {"name": "many_numbers", "scale": 7.0}
    parts = build_parts(load_recipe(made))
    first, second = (task.pair for task in parts.tasks)
    assert [m.scale for m in first.readers] == [1.0, 7.0] and [m.scale for m in second.readers] == [1.0, 1.0]
    assert first.readers[0] is second.readers[0], "both tasks train video"
    assert parts.tasks[0].source is parts.tasks[1].source
    assert not {id(m) for pair in (first, second) for m in pair.readers} & set(map(id, parts.model.modules()))
    own = parts.model.branches["audio"].modality
    assert not first.readers[1].training and own.training
    own.mean.add_(1)
    assert not first.readers[1].mean.any() and first.readers[1].mean.device.type == "cpu"


def test_building_the_readers_does_not_move_the_weights():
    made = load_recipe(recipe())
    torch.manual_seed(made.train.seed)
    alone = build_model(made).state_dict()
    built = build_parts(made).model.state_dict()
    assert alone.keys() == built.keys() and all(torch.equal(alone[name], built[name]) for name in alone)


def test_reading_options_with_a_pair_that_reads_for_itself():
    made = one_pair(
        pair={"name": "many_itself"},
        evaluate={"probes": []},
        a=branch(modality={"name": "many_numbers", "scale": 2.0, "size": 6}),
        b={"weights": "same"},
    )
    with pytest.raises(RecipeError) as caught:
        build_parts(load_recipe(made))
    assert str(caught.value).splitlines() == [
        (
            "a.modality.scale: pair 'many_itself' reads its samples itself, so this option would change"
            " nothing. Leave it out, or choose a pair that reads through the modality, such as cross_modal."
        ),
        (
            "a.modality.size: pair 'many_itself' reads its samples itself, so this option would change"
            " nothing. Set pair.size instead, or choose a pair that reads through the modality, such as"
            " cross_modal."
        ),
    ]

    several = recipe(evaluate={"probes": []})
    several["branches"]["text"]["modality"] = {"name": "many_numbers", "size": 6}
    build_parts(load_recipe(several))  # this pair reads through it
    several["pairs"][1] = {"a": "text", "b": "text", "pair": {"name": "many_itself"}}
    with pytest.raises(
        RecipeError, match="branches.text.modality.size: pair 'many_itself' .* Set pairs.1.pair.size instead"
    ):
        build_parts(load_recipe(several))
    build_parts(load_recipe(several, ["pairs.1.b=audio", "branches.text.modality=many_numbers"]))


def test_a_pair_of_a_branch_with_itself_shares_its_weights(tmp_path):
    made = recipe(evaluate={"probes": [{"name": "many_retrieval"}]})
    made["pairs"].append({"a": "text", "b": "text", "pair": {"name": "many_itself"}})
    folder = vicjoint.train(made, [f"out={tmp_path / 'run'}", "train.steps=3"])
    assert lines(folder)[2]["pair"] == "text-text"
    assert list(json.loads((folder / "evaluation.json").read_text())) == [
        f"many_retrieval {two}" for two in ("video-audio", "video-text", "text-text", "audio-text")
    ]
    environment = json.loads((folder / "environment.json").read_text())
    assert (
        environment["pairs"]["text-text"]
        == environment["probes"]["many_retrieval text-text"]
        == ["text (a)", "text (b)"]
    )


def test_two_pairs_of_the_same_branches_have_their_own_names_and_sources(tmp_path):
    made = recipe(data={"workers": 0, "max_bad_fraction": 0.5})
    made["pairs"][1] = {
        "a": "video",
        "b": "audio",
        "pair": columns("x", "z"),
        "source": {"name": "many_rows", "rows": 16, "broken": 2},
    }
    del made["branches"]["text"]
    folder = vicjoint.train(made, [f"out={tmp_path / 'run'}"])
    assert [s["pair"] for s in lines(folder)[:2]] == ["video-audio", "video-audio-2"]
    bad = [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]
    assert {(b["source"], b["sample"]) for b in bad} == {
        ("many_rows (pairs.1)", "row0"),
        ("many_rows (pairs.1)", "row1"),
    }
    assert (
        json.loads((folder / "environment.json").read_text())["source"]
        == "24 rows of numbers; 16 rows of numbers"
    )
    # each source is counted by itself: 2 of 16 are too many, though 2 of 40 would be allowed
    with pytest.raises(data.BadDataError, match="2 of 16 samples cannot be read"):
        vicjoint.train(made, [f"out={tmp_path / 'strict'}", "data.max_bad_fraction=0.06"])


# ---- probes of every two branches ----


def test_branches_that_were_never_paired_are_read_from_the_columns_of_their_pairs():
    made = recipe()
    made["pairs"][1] = {"a": "text", "b": "video", "pair": columns("z", "x", key="digit")}
    parts = build_parts(load_recipe(made))
    assert [(m.name, m.data.pair.a, m.data.pair.b, m.data.pair.key) for m in parts.evaluation.measures] == [
        ("many_retrieval video-audio", "x", "y", None),
        ("many_retrieval text-video", "z", "x", "digit"),
        ("many_retrieval audio-text", "y", "z", "digit"),
        ("many_first video-audio", "x", "y", None),
    ]
    values = parts.evaluation(parts.model, parts.untrained)[0]["many_retrieval audio-text"]["model"]
    first_row = parts.tasks[0].source.test[0]
    assert values["a0"] == pytest.approx(float(first_row["y"].split()[0]), abs=0.6)
    assert values["b0"] == pytest.approx(float(first_row["z"].split()[0]), abs=0.6)


def test_what_cannot_be_measured_is_left_out_with_the_reason(capsys):
    made = recipe(evaluate={"probes": [{"name": "many_retrieval"}]})
    made["pairs"][1]["source"] = {"name": "many_rows", "rows": 30}
    assert [m.name for m in build_parts(load_recipe(made)).evaluation.measures] == [
        "many_retrieval video-audio",
        "many_retrieval video-text",
    ]
    assert "probe many_retrieval audio-text is left out: no source has both" in capsys.readouterr().out
    made = recipe(evaluate={"probes": [{"name": "many_retrieval"}]})
    made["branches"]["other"] = branch(expander=[11])
    made["pairs"].append({"a": "other", "b": "other", "pair": columns("x", "x")})
    build_parts(load_recipe(made))
    assert (
        "many_retrieval video-other is left out: the embeddings of the two branches differ in width"
        in capsys.readouterr().out
    )


def test_one_pair_keeps_its_plain_names(tmp_path):
    folder = vicjoint.train(one_pair(), [f"out={tmp_path / 'run'}"])
    assert list(json.loads((folder / "evaluation.json").read_text())) == ["many_retrieval", "many_first"]
    assert {s["pair"] for s in lines(folder)} == {"a-b"} and "<h3>a-b</h3>" not in (
        folder / "report.html"
    ).read_text()
    assert {name.split(".")[1] for name in state(folder)["model"]} == {"a", "b"}
    assert list(json.loads((folder / "spectrum.json").read_text())) == ["a", "b"]


# ---- what comes out ----


def test_encoders_by_name_from_a_run_and_an_export(tmp_path, capsys):
    run = vicjoint.train(recipe(), [f"out={tmp_path / 'run'}"])
    assert export_command([str(run), "--to", str(tmp_path / "export")]) == 0
    view, saved = torch.randn(3, 6), state(run)["model"]
    for folder in (run, tmp_path / "export"):
        encoder = vicjoint.load_encoder(folder, branch="audio")
        assert encoder(view).shape == (3, encoder.dim) and not encoder.training
        assert torch.equal(encoder.encoder.net[0].weight, saved["branches.audio.encoder.net.0.weight"])
    assert export_command([str(run), "--to", str(tmp_path / "text.pth"), "--branch", "text"]) == 0
    assert torch.equal(
        torch.load(tmp_path / "text.pth", weights_only=True)["net.0.weight"],
        saved["branches.text.encoder.net.0.weight"],
    )
    measured = (run / "evaluation.json").read_text()
    assert evaluate_command([str(run)]) == 0 and (run / "evaluation.json").read_text() == measured != "{}"
    with pytest.raises(RecipeError, match="branch: 'a' is unknown. Expected 'video' or 'audio' or 'text'"):
        vicjoint.load_encoder(run)
    assert export_command([str(run), "--to", str(tmp_path / "x.pth"), "--branch", "vidoe"]) == 2
    assert "'vidoe' is unknown. Did you mean 'video'?" in capsys.readouterr().err


def test_dry_run_shows_every_pair(tmp_path, capsys):
    (tmp_path / "many.yaml").write_text(json.dumps(recipe()))
    assert run_command([str(tmp_path / "many.yaml"), "--dry-run", "train.steps=5"]) == 0
    said = capsys.readouterr().out
    assert (
        "branch audio: encoder" in said
        and "video-audio: samples: 24 records x 1 = 24 an epoch; steps: 3 of 8" in said
    )
    assert (
        "video-text: samples: 24 records x 1 = 24 an epoch; steps: 2 of 8" in said
        and "video-text: one step: loss" in said
    )
    assert "predictor" not in said or "predictor: null" in said
    assert "\na:" not in said and "\npair:" not in said, "the resolved recipe has one form"


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            {"branches.audio.expander": [11]},
            "branches.video.expander ends with 10 and branches.audio.expander with 11: the two embeddings",
        ),
        (
            {"branches": {"video": branch(), "type": branch()}, "pairs.0.b": "type", "pairs.1.b": "type"},
            "branches.type: torch has another meaning",
        ),
    ],
    ids=str,
)
def test_models_that_cannot_be(change, expected):
    with pytest.raises(RecipeError, match=expected):
        build_parts(load_recipe(recipe(), change))


def test_a_view_that_does_not_fit_names_the_pair(tmp_path):
    with pytest.raises(
        RecipeError, match=r"the encoders cannot take video-text's views \[1, 6\] and \[1, 6\]: mat1 and mat2"
    ):
        vicjoint.train(recipe(), [f"out={tmp_path / 'run'}", "branches.text.encoder.inputs=7"])
    assert not (tmp_path / "run").exists()
