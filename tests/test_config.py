"""Recipes: overrides, every mistake with its message, the way back through YAML. Components are small
fakes."""

import json
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vicjoint import registry
from vicjoint.parts import Modality, Objective, Predictor
from vicjoint.recipe import RecipeError, differences, json_schema, load_recipe, parse_yaml, to_yaml
from vicjoint.recipe.file import find_recipe

GOOD = """
name: small
source: {name: sample_videos, train: 512}
pair: {name: next_frame, frames: 8}
a: {modality: clip, encoder: {name: conv_gru, width: 32}, expander: [64, 64]}
b: {modality: next_frame, encoder: {name: conv}, expander: [64, 64]}
objective: {name: vicreg, invariance: 25}
optim: {name: adamw, lr: 1e-3, schedule: {name: cosine, warmup_steps: 5}}
train: {steps: 60, batch_size: 16}
evaluate: {every: 20, probes: [{name: retrieval}]}
"""


def sample_videos(train: int = 10, seed: int = 0): ...
def video_folder(root: str, test_fraction: float = 0.15): ...
def next_frame(frames: int = 8, area: tuple[float, float] = (1.0, 1.0)): ...
def conv_gru(width: int = 32, pool: Literal["mean", "last"] = "mean"): ...
def adamw(model, batch, /, lr: float, betas: tuple[float, float] = (0.9, 0.999)): ...
def lars(model, batch, /, lr: float, eta: float = 0.001): ...
def cosine(step, total, /, warmup_steps: int = 0): ...
def retrieval(queries: int = 4): ...


class Pixels(Modality):
    def __init__(self, mean: list[float] = (0.5,)): ...


class Frame(Pixels):
    accepts = ("image",)


class VICReg(Objective):
    def __init__(
        self,
        invariance: float = 25.0,
        variance: "float | dict[str, float]" = 25.0,
        form: Literal["clip", "moco"] = "clip",
    ): ...

    @classmethod
    def needs_slow_branch(cls, options):
        return "form" if options.get("form") == "moco" else None


class MLP(Predictor):
    def __init__(self, dim: int, /, hidden: int = 8): ...


@pytest.fixture(scope="module", autouse=True)
def components():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_loaded", True)
        patch.setattr(
            registry,
            "_components",
            {
                "source": {"sample_videos": sample_videos, "video_folder": video_folder},
                "pair": {"next_frame": next_frame},
                "modality": {"clip": Pixels, "next_frame": Frame, "image": Pixels},
                "encoder": {"clip/conv_gru": conv_gru, "image/conv": conv_gru},
                "predictor": {"mlp": MLP},
                "objective": {"vicreg": VICReg},
                "optimizer": {"adamw": adamw, "lars": lars},
                "schedule": {"cosine": cosine},
                "probe": {"retrieval": retrieval},
            },
        )
        yield


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


def message(recipe, overrides=()) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def test_values_are_typed_and_options_converted(good):
    recipe = load_recipe(
        good, ["optim.lr=3e-4", "objective.invariance=1", "predictor={name: mlp}", "optim.betas=[0.9, 0.95]"]
    )
    assert (
        recipe.written.optim.lr == 3e-4
        and recipe.written.optim.betas == (0.9, 0.95)
        and recipe.written.optim.schedule.warmup_steps == 5
    )
    assert isinstance(recipe.written.objective.invariance, float) and recipe.written.predictor.name == "mlp"
    assert recipe.train.precision == "fp32" and recipe.checkpoint.keep == 2 and recipe.announcement is None


MISTAKES = [
    (
        "train.batch_sise=4",
        "train.batch_sise: unknown key. Did you mean 'batch_size'? Known: steps, epochs, batch_size",
    ),
    ("sorce={name: x}", "sorce: unknown key. Did you mean 'source'?"),
    ("train.steps=many", "train.steps: expected a whole number, got 'many'."),
    ("train.steps=true", "train.steps: expected a whole number, got true."),
    ("train.batch_size=0", "train.batch_size: expected a number at least 2, got 0."),
    ("train.batch_size=null", "train.batch_size: expected a whole number, got nothing (null)."),
    ("train={steps: 1}", "train.batch_size: missing. Expected samples in a global batch"),
    ("train.steps=null", "train: missing its length. Set train.steps or train.epochs."),
    (
        "train.precision=bf61",
        "train.precision: expected one of 'fp32' or 'bf16', got 'bf61'. Did you mean 'bf16'?",
    ),
    ("data.max_bad_fraction=.nan", "data.max_bad_fraction: expected a"),
    ("a.expander=[64, -1]", "a.expander.1: expected a number above 0, got -1."),
    ("a.expander=[]", "a.expander: expected a list of 1 or more, got []."),
    ("a.weights=ema", "a.weights: ema is for branch b only."),
    ("b.momentum=0.9", "b.momentum: only used with weights: ema"),
    (
        "b={encoder: {name: conv_gru, width: 3}, weights: same}",
        "b.encoder: differs from a.encoder, but weights: same",
    ),
    ("a.encoder.name=conv_gro", "a.encoder.name: no encoder 'clip/conv_gro'. Did you mean 'clip/conv_gru'?"),
    (
        "a.encoder.widht=3",
        (
            "a.encoder.widht: encoder 'clip/conv_gru' takes no option 'widht'. Did you mean 'width'? Options:"
            " width, pool."
        ),
    ),
    ("a.encoder.pool=max", "a.encoder.pool: expected one of 'mean' or 'last', got 'max'."),
    ("a.modality=clib", "a.modality.name: no modality 'clib'. Did you mean 'clip'?"),
    ("source.name=video_folder", "source.root: missing. source 'video_folder' needs it."),
    ("source={name: video_folder, root: /no/such/place}", "source.root: /no/such/place does not exist"),
    ("source={train: 3}", "source.name: missing."),
    ("optim={name: adamw, schedule: {name: cosine}}", "optim.lr: missing. optimizer 'adamw' needs it."),
    ("optim.lr=fast", "optim.lr: expected a number, got 'fast'."),
    ("optim.lr=true", "optim.lr: expected a number, got true."),
    ("optim.schedule.name=cosin", "optim.schedule.name: no schedule 'cosin'. Did you mean 'cosine'?"),
    ("objective.variance=big", "objective.variance: expected a number or a mapping, got 'big'."),
    ("predictor={name: mlp, dim: 3}", "predictor.dim: predictor 'mlp' takes no option 'dim'."),
    (
        "evaluate.probes=[{name: retrieval, query: 3}]",
        "evaluate.probes.0.query: probe 'retrieval' takes no option 'query'. Did you mean 'queries'?",
    ),
    (
        "evaluate.probes=[{name: retrieval}, {name: retrieval}]",
        "evaluate.probes.1: 'retrieval' is listed twice.",
    ),
    (
        "evaluate.probes=[{name: retrieval}, {name: retrieval, as: retrieval}]",
        (
            "evaluate.probes.1: 'retrieval' is listed twice. Its results would "
            "replace each other. Name one of them, such as as: retrieval_2."
        ),
    ),
    (
        "evaluate.probes=[{name: retrieval, as: a/b}]",
        "evaluate.probes.0.as: expected a name of letters, digits and . _ + -, got 'a/b'.",
    ),
    ("imports=[no_such_module]", "imports: cannot import 'no_such_module'"),
    ("name=a/b", "name: expected a name of letters, digits"),
    ("train.steps", "argument 'train.steps': expected key=value, such as train.steps=100."),
    ("optim.lr={", "argument 'optim.lr={', line 1, column 2:"),
    ("name.first=x", "name.first: 'name' is 'small', which has no keys."),
]


@pytest.mark.parametrize("override, expected", MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_gets_its_message(good, override, expected):
    text = message(good, [override])
    assert f"recipe {good} has 1 mistake:\n  {expected}" in text, text


SEVERAL = """
name: many
source: {name: sample_videos}
branches:
  video: {modality: clip, encoder: {name: conv_gru}, expander: [64, 64]}
  frame: {modality: next_frame, encoder: {name: conv}, expander: [64, 64]}
  still: {modality: image, encoder: {name: conv}, expander: [64, 64]}
pairs:
  - {a: video, b: frame, pair: {name: next_frame, frames: 8}}
  - {a: video, b: still, pair: {name: next_frame}, objective: {name: vicreg, variance: 5}, weight: 2}
objective: {name: vicreg, invariance: 25}
optim: {name: adamw, lr: 1e-3, schedule: {name: cosine, warmup_steps: 5}}
train: {steps: 60, batch_size: 16}
"""
MISTAKES_OF_SEVERAL = [
    ("pairs.0.a=vidoe", "pairs.0.a: no branch 'vidoe'. Did you mean 'video'? Branches: video, frame, still."),
    ("pairs.1.b=frame", "branches.still: no pair uses it. Leave it out, or add a pair with it."),
    (
        "pairs.1.wieght=3",
        "pairs.1.wieght: unknown key. Did you mean 'weight'? Known: a, b, pair, objective, source, weight, share.",
    ),
    ("pairs.1.weight=0", "pairs.1.weight: expected a number above 0.0, got 0."),
    ("pairs.2.weight=1", "pairs.2.weight: 'pairs' has no entry 2. It has 2, numbered from 0."),
    ("pairs.first.weight=1", "pairs.first.weight: 'pairs' has no entry first. It has 2, numbered from 0."),
    ("pairs.0.a.name=x", "pairs.0.a.name: 'pairs.0.a' is 'video', which has no keys. Replace it whole."),
    ("pairs.0.pair.name=next_fram", "pairs.0.pair.name: no pair 'next_fram'. Did you mean 'next_frame'?"),
    (
        "pairs.0.pair.frame=3",
        "pairs.0.pair.frame: pair 'next_frame' takes no option 'frame'. Did you mean 'frames'?",
    ),
    (
        "pairs.1.objective.variance=big",
        "pairs.1.objective.variance: expected a number or a mapping, got 'big'.",
    ),
    ("pairs.1.source={name: video_folder, root: /no/such}", "pairs.1.source.root: /no/such does not exist"),
    ("pairs.0={a: video, b: frame}", "pairs.0.pair: missing. Expected how two views are made of a sample."),
    ("pairs.0.pair={frames: 3}", "pairs.0.pair.name: missing. Expected the name of a component."),
    ("pairs=[]", "pairs: expected a list of 1 or more, got []."),
    ("pairs=null", "pairs: missing. Expected pairs of branches, trained in turn; instead of pair."),
    ("branches=null", "branches: missing. Expected branches by name, for several pairs; instead of a and b."),
    (
        "branches.video.encoder.name=conv_gro",
        "branches.video.encoder.name: no encoder 'clip/conv_gro'. Did you mean 'clip/conv_gru'?",
    ),
    (
        "branches.still.modality=imag",
        "branches.still.modality.name: no modality 'imag'. Did you mean 'image'?",
    ),
    ("branches.video.expandr=3", "branches.video.expandr: unknown key. Did you mean 'expander'?"),
    ("branches.video.expander=[0]", "branches.video.expander.0: expected a number above 0, got 0."),
    (
        "branches.still.weights=ema",
        "branches.still.weights: only for branch b of a recipe with one pair. Leave it out; a pair whose",
    ),
    ("branches.still.momentum=0.9", "branches.still.momentum: only for branch b of a recipe with one pair."),
    (
        "predictor={name: mlp}",
        "predictor: only in a recipe of one pair, where it maps a's embedding to b's. Leave it out.",
    ),
    (
        "a={modality: clip, encoder: {name: conv_gru}, expander: [64]}",
        (
            "a: for a recipe of one pair, but this one has branches and pairs. Give pair, a and b, or else"
            " branches and pairs."
        ),
    ),
    ("objective=null", "objective: missing. Expected the loss."),
    ("source=null", "source: missing. Expected where samples are."),
]


@pytest.mark.parametrize("override, expected", MISTAKES_OF_SEVERAL, ids=[m[0] for m in MISTAKES_OF_SEVERAL])
def test_a_mistake_in_a_recipe_of_several_pairs(override, expected):
    text = message(parse_yaml(SEVERAL, "x"), [override])
    assert f"recipe (given as a mapping) has 1 mistake:\n  {expected}" in text, text


def test_mistakes_in_several_pairs_come_out_together():
    made = parse_yaml(SEVERAL, "x")
    made["branches"]["no-name"] = made["branches"]["still"]
    made["pairs"][1]["objective"]["form"] = "moco"
    text = message(
        made,
        ["pairs.0.a=clip", "branches.frame.encoder.widht=3", "pair={name: next_frame}", "train.steps=many"],
    )
    assert text.splitlines()[0].endswith("has 6 mistakes:")
    for part in (
        "pairs.0.a: no branch 'clip'",
        "branches.frame.encoder.widht:",
        "pair: for a recipe of one pair",
        "train.steps:",
        "branches.no-name: expected a name",
        "pairs.1.objective.form: moco needs a branch b",
    ):
        assert part in text, (part, text)


def test_a_recipe_of_several_pairs():
    recipe = load_recipe(
        parse_yaml(SEVERAL, "x"),
        [
            "branches.still.encoder={name: conv, width: 7}",
            "pairs.0.objective.name=vicreg",
            "pairs.0.objective.invariance=10",
            "branches.still.modality.mean=[1]",
        ],
    )
    first, second = recipe.tasks
    assert (first.a, first.b, first.pair["frames"], first.objective["invariance"], first.weight) == (
        "video",
        "frame",
        8,
        10.0,
        1.0,
    )
    assert (second.objective, second.source["name"], second.weight) == (
        {"name": "vicreg", "variance": 5.0},
        "sample_videos",
        2.0,
    )
    assert list(recipe.branches) == ["video", "frame", "still"]
    assert recipe.written.branches["still"].encoder.width == 7 and recipe.written.branches[
        "still"
    ].modality.mean == [1.0]
    again = load_recipe(parse_yaml(to_yaml(recipe), "x"))
    assert (
        again == recipe
        and not {"a", "b", "pair"} & set(recipe.dump())
        and "source" not in recipe.dump()["pairs"][0]
    )
    assert not {"branches", "pairs"} & set(load_recipe(parse_yaml(GOOD, "x")).dump())
    other = load_recipe(parse_yaml(to_yaml(recipe), "x"), ["pairs.1.objective.variance=6"])
    assert differences(recipe, other) == ["pairs.1.objective.variance: 5.0 -> 6.0"]


def test_source_and_objective_may_stand_in_every_pair_alone():
    made = parse_yaml(SEVERAL, "x")
    for key in ("source", "objective"):
        for pair in made["pairs"]:
            pair[key] = made[key]
        del made[key]
    recipe = load_recipe(made)
    assert recipe.written.source is None and [t.source["name"] for t in recipe.tasks] == ["sample_videos"] * 2
    assert load_recipe(recipe.dump()) == recipe


def test_an_override_reaches_into_a_list(good):
    assert load_recipe(good, ["evaluate.probes.0.queries=9"]).evaluate.probes[0].queries == 9
    assert "evaluate.probes.0.name: no probe 'retrieva'" in message(good, ["evaluate.probes.0.name=retrieva"])


def test_a_recipe_of_one_pair_lacks_nothing(good):
    for key in ("source", "pair", "a", "objective"):
        assert f"has 1 mistake:\n  {key}: missing. Expected " in message(good, [f"{key}=null"])


def test_all_mistakes_come_out_together(good):
    overrides = ["train.steps=many", "source.trian=3", "nonsense", "optim.name=adam", "evaluate.evry=2"]
    lines = message(good, overrides).splitlines()
    assert lines[0] == f"recipe {good} has 5 mistakes:"
    assert all(
        any(key in line for line in lines[1:])
        for key in ("train.steps", "source.trian", "'nonsense'", "optim.name", "evaluate.evry")
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_component_name_drops_the_old_options(good, tmp_path, order):
    recipe = load_recipe(
        good,
        ["source.name=video_folder", f"source.root={tmp_path}", "optim.name=lars", "optim.lr=0.2"][::order],
    )
    assert recipe.written.source.model_dump() == {"name": "video_folder", "root": str(tmp_path)}
    assert recipe.written.optim.lr == 0.2 and recipe.written.optim.schedule.name == "cosine"
    # the same name: nothing is dropped
    assert load_recipe(good, ["source.name=sample_videos"]).written.source.train == 512
    assert "takes no option 'train'" in message(
        good, ["source.name=video_folder", f"source.root={tmp_path}", "source.train=3"][::order]
    )


def test_branch_b_takes_what_is_a(good):
    recipe = load_recipe(good, ["b={weights: ema, momentum: 0.9}"])
    assert (
        recipe.written.b.encoder.width == 32
        and recipe.written.b.expander == [64, 64]
        and recipe.written.b.modality == "clip"
        and recipe.written.b.momentum == 0.9
    )
    assert message(good, ["b={weights: same}", "a.encoder.widht=1"]).count("widht: ") == 1
    assert load_recipe(good, ["a.modality.mean=[1]"]).written.a.modality.mean == [1.0]


BLOCK = "without_data: {source: {name: sample_videos}, train.steps: 3, optim.lr: 1}\n"


def test_without_data(good, tmp_path):
    good.write_text(
        GOOD.replace("{name: sample_videos, train: 512}", "{name: video_folder, root: null}") + BLOCK
    )
    sample = load_recipe(good, ["optim.lr=0.5"])
    assert (
        sample.announcement.startswith("SAMPLE DATA: source.root is not given")
        and "\n" not in sample.announcement
    )
    assert (sample.written.source.name, sample.train.steps, sample.written.optim.lr) == (
        "sample_videos",
        3,
        0.5,
    )
    (tmp_path / "resolved.yaml").write_text(to_yaml(sample))
    assert load_recipe(tmp_path / "resolved.yaml") == sample
    real = load_recipe(good, [f"source.root={tmp_path}"])
    assert real.announcement is None and real.train.steps == 60
    assert (
        load_recipe(
            tmp_path / "resolved.yaml", ["source.name=video_folder", f"source.root={tmp_path}"]
        ).announcement
        is None
    )
    assert "source.root: /no/such does not exist" in message(good, ["source.root=/no/such"])
    assert load_recipe(good, ["source.root=/no/such"], check_paths=False).written.source.root == "/no/such"
    # a source chosen by the user stands, and nothing claims otherwise
    assert load_recipe(good, ["source.name=sample_videos"]).announcement is None


def test_the_resolved_recipe_reads_back_the_same(good):
    recipe = load_recipe(good, ["optim.betas=[0.9, 0.95]", "out='1e-6'", "optim.lr=1e-7"])
    assert load_recipe(recipe.dump()) == recipe
    assert yaml.safe_load(to_yaml(recipe))["name"] == "small"
    good.write_text(to_yaml(recipe))
    assert load_recipe(good) == recipe and recipe.out == "1e-6"


def test_differences(good):
    a, b = load_recipe(good), load_recipe(good, ["out=x", "data.workers=0"])
    assert differences(a, b) == []
    b = load_recipe(good, ["optim.lr=0.1", "source={name: sample_videos, seed: 1}"])
    assert differences(a, b) == [
        "source.train: 512 -> absent",
        "optim.lr: 0.001 -> 0.1",
        "source.seed: absent -> 1",
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a: 1\nb: [", "line 2, column 5"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: key 'a' is given twice, first on line 1"),
        ("- 1\n", "is not a mapping of keys"),
        ("", "it holds nothing (null)"),
        ("&a [*a]", "line 1, column 1: '&a': a recipe takes no anchors"),
        ("[" * 3000, "nested too deeply"),
        ("a: !!python/name:os.system x", "could not determine a constructor"),
    ],
)
def test_broken_files(good, text, expected):
    good.write_text(text)
    assert str(good) in message(good) and expected in message(good) and "\n" not in message(good)


def test_aliases_are_refused_before_they_expand(good):
    # the "billion laughs": each list holds the one before it nine times; a few levels show it
    lists = ["l0: &l0 [x]"] + [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 5)]
    good.write_text(GOOD + "\n".join(lists))
    assert (
        "line 11, column 5: '&l0': a recipe takes no anchors (&) or aliases (*); write the value out."
        in message(good)
    )
    assert "argument 'pair=*l0', line 1, column 1: '*l0': a recipe takes no anchors" in message(
        parse_yaml(GOOD, "x"), ["pair=*l0"]
    )


TYPED = [  # what is typed, and what a key that takes text makes of it
    ("Dataset #1", "Dataset #1"),
    ("#2", "#2"),
    ("2024", "2024"),
    ("007", "007"),
    ("1e3", "1e3"),
    ("true", "true"),
    ("a: b", "a: b"),
    ("[x]", "[x]"),
    ("- x", "- x"),
    ("%x", "%x"),
    ("@x", "@x"),
    ("C:\\data\\new", "C:\\data\\new"),
    ("C:", "C:"),
    ("caf\udce9", "caf\udce9"),  # bytes that are not UTF-8, as Python gives them
    ("'my run #2'", "my run #2"),
    (" spaced ", "spaced"),
    ("null", None),
    ("~", None),
    ("", None),
]


@pytest.mark.parametrize("typed, meant", TYPED, ids=repr)
def test_text_is_taken_as_it_is_typed(good, typed, meant):
    recipe = load_recipe(good, [f"out={typed}", f"checkpoint.best={typed}"])
    assert (recipe.out, recipe.checkpoint.best) == (meant, meant)
    assert load_recipe(parse_yaml(to_yaml(recipe), "x")).out == meant  # the way back
    if meant is not None:
        root = load_recipe(good, ["source.name=video_folder", f"source.root={typed}"], check_paths=False)
        assert root.tasks[0].source["root"] == meant


def test_what_is_not_text_is_yaml_and_never_cut(good):
    recipe = load_recipe(good, ["train.steps=12", "a.expander=[8, 16] # two", "optim.lr=1e-3"])
    assert (recipe.train.steps, recipe.branches["a"].expander) == (12, [8, 16])
    assert "train.steps: expected a whole number, got '12 #3'." in message(good, ["train.steps=12 #3"])
    assert "a.modality.name: no modality 'clip #2'" in message(good, ["a.modality=clip #2"])


def test_missing_files(good, monkeypatch):
    monkeypatch.chdir(good.parent)
    assert load_recipe("small").name == "small"
    assert find_recipe("recipes/caltech.yaml").is_file(), "as pages print it, from any folder"
    assert "Did you mean 'video_next_frame'?" in message("video_nextframe")
    assert "no recipe 'folder/none.yaml'" in message("folder/none.yaml")


def test_yaml_scalars():
    assert parse_yaml("[1e-6, 1e-3, 010, no, 2024-01-01, true, ~, 1:30, .5]", "x") == [
        1e-6,
        1e-3,
        10,
        "no",
        "2024-01-01",
        True,
        None,
        "1:30",
        0.5,
    ]


def test_schema_names_components_and_options():
    schema = json.loads(json.dumps(json_schema()))
    source = schema["properties"]["source"]
    assert source["properties"]["name"]["enum"] == ["sample_videos", "video_folder"]
    folder = next(one for one in source["oneOf"] if one["title"] == "video_folder")
    assert folder["required"] == ["name", "root"] and folder["properties"]["test_fraction"] == {
        "type": "number",
        "default": 0.15,
    }
    assert folder["additionalProperties"] is False and schema["additionalProperties"] is False
    assert all("description" in key for key in schema["properties"].values())
    branches, pairs = schema["properties"]["branches"], schema["properties"]["pairs"]
    assert branches["additionalProperties"] == {
        "$ref": "#/$defs/Branch",
        "required": ["modality", "encoder", "expander"],
    }
    assert pairs["items"] == {"$ref": "#/$defs/PairOfBranches"} and schema["$defs"]["PairOfBranches"][
        "required"
    ] == ["a", "b", "pair"]
    of_pair = schema["$defs"]["PairOfBranches"]["properties"]
    assert (
        of_pair["pair"]["properties"]["name"]["enum"] == ["next_frame"]
        and of_pair["objective"]["oneOf"][0]["title"] == "vicreg"
    )
    one, several = schema["oneOf"]
    assert one["required"] == ["source", "pair", "a", "b", "objective"] and several["required"] == [
        "branches",
        "pairs",
    ]
    text = json.dumps(schema)
    assert all(
        f'"#/$defs/{name}"' not in text or name in schema["$defs"]
        for name in ("Component", "Branch", "PairOfBranches", "Train", "Optim")
    )


KEYS = st.sampled_from(
    [
        "name",
        "source",
        "a",
        "b",
        "branches",
        "pairs",
        "pairs.0",
        "pair",
        "train",
        "optim",
        "evaluate",
        "probes",
        "steps",
        "weights",
        "encoder",
        "without_data",
        "zzz",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["same", "clip", "conv", "adamw"])
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40) | st.text("{}[]:-&*!#|>'\"? \nab1.", max_size=30), key=KEYS, value=VALUES)
def test_anything_is_a_recipe_or_a_recipe_error(tmp_path_factory, text, key, value):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(GOOD + text, encoding="utf-8", errors="replace")
    for recipe, overrides in (
        (path, ()),
        (parse_yaml(GOOD, "x"), {key: value}),
        (parse_yaml(SEVERAL, "x"), {key: value}),
        (parse_yaml(GOOD, "x"), [text]),
    ):
        try:
            to_yaml(load_recipe(recipe, overrides))
        except RecipeError as error:
            assert str(error)
