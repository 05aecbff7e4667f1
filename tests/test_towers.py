"""How branches learn: frozen towers, rates of their own, layer-wise decay, adapters, kept features."""

import copy
import sys

import pytest
import tiny
import torch
from torch import nn

import vicjoint
from vicjoint.export import export
from vicjoint.optim import parameter_groups, set_learning_rate
from vicjoint.parts import Source
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.registry import ComponentError, register
from vicjoint.towers import depths
from vicjoint.training import checkpoint
from vicjoint.training.build import build_parts

MLP = {"name": "mlp", "hidden": 8}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """A second of plots, which no test here looks at."""
    monkeypatch.setattr("vicjoint.training.loop.write_report", lambda folder: folder / "report.html")


def recipe(a=(), b=(), **changes) -> dict:
    quick = {"evaluate": {"last": False, "explorer": 0}}
    return tiny.recipe(a=tiny.branch(**dict(a)), b=tiny.branch(**dict(b)), **(quick | changes))


def untrained(written: dict) -> dict[str, torch.Tensor]:
    return build_parts(load_recipe(written)).model.state_dict()


def trained(folder) -> dict:
    return checkpoint.load_last(folder / "checkpoints")


def moved(written: dict, folder, overrides=()) -> set[str]:
    """Which parts of which branches training has changed."""
    before = untrained(written)
    after = trained(vicjoint.train(written, [f"out={folder}", *overrides]))["model"]
    return {
        ".".join(name.split(".")[1:3]) if name.startswith("branches") else name.split(".")[0]
        for name, x in after.items()
        if not torch.equal(x, before[name])
    }


@pytest.mark.parametrize(
    "a, b, more, expected",
    [
        ({}, {}, {}, {"a.encoder", "a.expander", "b.encoder", "b.expander"}),
        ({}, {"train": "expander"}, {}, {"a.encoder", "a.expander", "b.expander"}),
        ({}, {"train": "frozen"}, {}, {"a.encoder", "a.expander"}),
        ({"train": "frozen"}, {}, {}, {"b.encoder", "b.expander"}),
        ({"train": "frozen"}, {"train": "frozen"}, {"predictor": MLP}, {"predictor"}),
        ({"train": "expander"}, {"weights": "same"}, {}, {"a.expander", "b.expander"}),
        ({"train": "expander"}, {"weights": "ema", "momentum": 0.9}, {}, {"a.expander", "b.expander"}),
    ],
)
@pytest.mark.parametrize("overrides", [[], ["train.accumulate=2"]], ids=["whole", "in parts"])
def test_what_does_not_learn_is_bit_identical_running_statistics_too(
    a, b, more, expected, overrides, tmp_path
):
    assert moved(recipe(a, b, **more), tmp_path / "run", overrides) == expected


def test_what_does_not_learn_has_no_gradient_and_no_optimizer_state(tmp_path):
    written = recipe(b={"train": "expander"})
    parts = build_parts(load_recipe(written))
    encoder = parts.model.train().branches["b"].encoder
    assert not any(module.training for module in encoder.modules())
    assert parts.model.branches["b"].expander.training and parts.model.branches["a"].encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    raw = torch.rand(4, 6)
    assert parts.model.branches["b"].represent(raw).grad_fn is None  # so nothing is kept for a backward pass
    state = trained(vicjoint.train(written, [f"out={tmp_path / 'run'}"]))["optimizer"]["state"]
    learning = sum(p.requires_grad for p in parts.model.parameters())
    assert len(state) == learning == len(list(parts.model.parameters())) - len(list(encoder.parameters()))


def test_a_frozen_branch_is_said(tmp_path, capsys):
    vicjoint.train(recipe(b={"train": "frozen"}), [f"out={tmp_path / 'run'}"])
    assert "branch b is frozen: its expander, too, stays as it was initialised" in capsys.readouterr().out


@pytest.mark.parametrize("b", [{"train": "expander"}, {"train": "frozen"}], ids=str)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(b, tmp_path, monkeypatch):
    written = recipe(a={"lr_factor": 0.3, "weight_decay": 0.2}, b=b)
    vicjoint.train(written, [f"out={tmp_path / 'one'}"])
    stop_after(monkeypatch, 7, lambda: vicjoint.train(written, [f"out={tmp_path / 'other'}"]))
    vicjoint.train(written, [f"out={tmp_path / 'other'}"])
    tiny.same_end(tmp_path / "one", tmp_path / "other")


def stop_after(monkeypatch, number: int, run) -> None:
    """Call `run`, whose training fails in the step after so many."""
    from vicjoint.training import loop, steps

    calls, whole = [0], steps.backward

    def failing(*given, **named):
        calls[0] += 1
        if calls[0] > number:
            raise MemoryError("on purpose")
        return whole(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "backward", failing)
        with pytest.raises(loop.TrainingError):
            run()


# ---- rates ----


def test_an_encoder_learns_at_a_rate_of_its_own_and_its_expander_at_the_full_one():
    parts = build_parts(load_recipe(recipe(a={"lr_factor": 0.1, "weight_decay": 0.3})))
    set_learning_rate(parts.optimizer, {"name": "constant"}, 0, 10)
    group_of = {p: group for group in parts.optimizer.param_groups for p in group["params"]}
    for name, p in parts.model.named_parameters():
        of_encoder = name.startswith("branches.a.encoder")
        assert group_of[p]["lr"] == pytest.approx(1e-3 if of_encoder else 1e-2), name
        decay = (0.3 if of_encoder else 0.05) if p.ndim > 1 else 0.0
        assert group_of[p]["weight_decay"] == decay, name
    assert set_learning_rate(parts.optimizer, {"name": "constant"}, 0, 10) == 1e-2


def test_groups_are_as_ever_where_no_branch_has_a_rate():
    model = build_parts(load_recipe(recipe())).model
    groups = parameter_groups(model, 0.05)
    assert [sorted(group) for group in groups] == [["adapt", "params", "weight_decay"]] * 2
    assert [p.shape for group in groups for p in group["params"]] == [
        p.shape for many in (True, False) for p in model.parameters() if (p.ndim > 1) == many
    ]


class Row(nn.Module):
    """A transformer as libraries write them: what comes first is registered first."""

    def __init__(self, blocks: int = 3):
        super().__init__()
        self.dim = 4
        self.cls = nn.Parameter(torch.zeros(4))
        self.embed = nn.Linear(6, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(blocks))
        self.norm = nn.LayerNorm(4)


def test_layers_are_counted_from_the_top():
    row = Row()
    found = {name: dict(depths(row))[p] for name, p in row.named_parameters()}
    assert found["norm.weight"] == 0
    assert [found[f"layers.{i}.0.weight"] for i in range(3)] == [3, 2, 1]
    assert found["cls"] == found["embed.weight"] == 4
    assert [depth for _, depth in depths(row)] == list(found.values())


def test_layer_decay_reaches_the_optimizer(tmp_path):
    text = tiny.branch(modality="text", encoder={"name": "transformer", "layers": 3, "width": 8, "heads": 2})
    parts = build_parts(load_recipe(tiny.recipe(a=text | {"layer_decay": 0.5, "lr_factor": 0.1})))
    group_of = {p: group for group in parts.optimizer.param_groups for p in group["params"]}
    factor = {
        name: group_of[p].get("lr_factor") for name, p in parts.model.branches["a"].encoder.named_parameters()
    }
    assert factor["project.weight"] == pytest.approx(0.1)
    assert factor["layers.layers.2.linear1.weight"] == pytest.approx(0.05)
    assert factor["layers.layers.0.linear1.weight"] == pytest.approx(0.0125)
    assert factor["tokens.embedding.weight"] == pytest.approx(0.00625)


def test_layers_in_stages_are_refused():
    stages = nn.Sequential(Row(2).layers, Row(3).layers, nn.Linear(2, 2))
    with pytest.raises(ComponentError, match="layer_decay: the layers of Sequential are not one row"):
        list(depths(stages))
    wrong = recipe(a={"layer_decay": 0.5})
    wrong["a"]["encoder"] = {"name": "noisy"}
    with pytest.raises(RecipeError, match="layer_decay: the layers of Noisy are not one row .* lr_factor"):
        build_parts(load_recipe(wrong))


# ---- messages ----


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["a.train=frozen", "b.train=frozen"], "a.train: frozen, and b is too: nothing is left to train."),
        (["a.train=frozen", "b={weights: same}"], "a.train: frozen, and b follows it .weights: same."),
        (
            ["b={weights: same, train: expander}"],
            "b.train: 'expander' is for a branch with weights of its own",
        ),
        (["a.train=expander", "a.lr_factor=0.1"], "a.lr_factor: 0.1 is of an encoder that learns"),
        (["a.train=frozen", "a.layer_decay=0.5"], "a.layer_decay: 0.5 is of an encoder that learns"),
        (["a.cache=features"], "a.cache: 'features' keeps what the encoder gives, which training changes"),
        (["a.lora_rank=4"], "a.lora_rank: only used with a.train=lora"),
        (["a.train=half"], "a.train: expected"),
        (["a.lr_factor=0"], "a.lr_factor: expected a number"),
    ],
)
def test_mistakes_in_words(overrides, message):
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(recipe(), overrides)
    assert "1 mistake:" in str(error.value)


def test_two_frozen_branches_of_several_pairs_are_refused():
    frozen, pair = tiny.branch(train="frozen"), {"name": "tiny_views"}
    written = tiny.recipe(
        branches={"x": frozen, "y": frozen, "z": tiny.branch()},
        pairs=[{"a": "x", "b": "z", "pair": pair}, {"a": "x", "b": "y", "pair": pair}],
    )
    written = {key: value for key, value in written.items() if key not in ("a", "b", "pair")}
    with pytest.raises(RecipeError, match="pairs.1: branches x and y are frozen: nothing is left to train"):
        load_recipe(copy.deepcopy(written))


# ---- adapters ----

TINY_BERT = {"vocab_size": 384, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {"name": "transformers", "model": "bert", "config": TINY_BERT | {"intermediate_size": 32}}


def of_texts(**a) -> dict:
    """A recipe of two columns of texts; `a`: keys of branch a, a tiny BERT."""
    pytest.importorskip("peft")
    bert = {"modality": "text", "encoder": BERT, "expander": [16, 12], "train": "lora", "lora_rank": 2}
    words = {"modality": "text", "encoder": {"name": "words", "width": 8, "dim": 8}, "expander": [16, 12]}
    return tiny.recipe(
        source={"name": "two_columns"},
        pair={"name": "cross_modal", "a": "x", "b": "y"},
        a=bert | a,
        b=words,
        evaluate={"last": False, "explorer": 0},
        train={"steps": 6, "batch_size": 6},
    )


@register("source", "two_columns")
class TwoColumns(Source):
    def __init__(self):
        rows = [{"id": f"{i}", "x": f"a thing {i}", "y": f"{i} is a thing"} for i in range(20)]
        self.train, self.test = rows[:14], rows[14:]


def test_adapters_learn_and_nothing_else_of_the_encoder_does(tmp_path):
    before = untrained(of_texts())
    run = trained(vicjoint.train(of_texts(), [f"out={tmp_path / 'run'}"]))
    changed = {name for name, x in run["model"].items() if not torch.equal(x, before[name])}
    of_encoder = {name for name in changed if name.startswith("branches.a.encoder")}
    assert of_encoder == {name for name in before if "lora_" in name} and len(of_encoder) == 2 * 2 * 6
    assert changed - of_encoder == {name for name in before if "a.encoder" not in name} & set(changed)
    assert any(name.startswith("branches.a.expander") for name in changed)
    parts = build_parts(load_recipe(of_texts()))
    learning = [name for name, p in parts.model.named_parameters() if p.requires_grad]
    assert not any("a.encoder" in name and "lora_" not in name for name in learning)
    assert len(run["optimizer"]["state"]) == len(learning)


def test_an_encoder_with_adapters_begins_as_it_was():
    written = of_texts(), of_texts(train="frozen", lora_rank=8)
    a = [build_parts(load_recipe(of)).model.eval().branches["a"] for of in written]
    text = a[0].modality.read("a thing")
    assert torch.equal(a[0].represent(text), a[1].represent(text))


def test_a_run_with_adapters_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    written = of_texts() | {"checkpoint": {"every": 2}}
    vicjoint.train(written, [f"out={tmp_path / 'one'}"])
    stop_after(monkeypatch, 3, lambda: vicjoint.train(written, [f"out={tmp_path / 'other'}"]))
    vicjoint.train(written, [f"out={tmp_path / 'other'}"])
    tiny.same_end(tmp_path / "one", tmp_path / "other")


def test_adapters_are_merged_on_export(tmp_path):
    transformers = pytest.importorskip("transformers")
    run = vicjoint.train(of_texts(), [f"out={tmp_path / 'run'}", "optim.lr=0.1"])
    parts = build_parts(load_recipe(of_texts()))
    parts.model.load_state_dict(trained(run)["model"])
    branch = parts.model.eval().branches["a"]
    with torch.no_grad():
        expected = branch.represent(branch.modality.read("a thing 3"))
    folder = export(run, tmp_path / "export", imports=["tiny"])
    for place in (run, folder):
        encoder = vicjoint.load_encoder(place, imports=["tiny"])
        assert not any("lora" in name for name in encoder.state_dict())
        torch.testing.assert_close(encoder.embed(["a thing 3"]), expected, rtol=1e-4, atol=1e-5)
    hashes = {vicjoint.load_encoder(place, imports=["tiny"]).origin.model for place in (run, folder)}
    assert len(hashes) == 1  # embeddings of the one are those of the other
    theirs = transformers.AutoModel.from_pretrained(folder / "a").state_dict()
    ours = vicjoint.load_encoder(folder, imports=["tiny"]).encoder.model.state_dict()
    assert ours.keys() <= theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_other_encoders_have_no_adapters(monkeypatch):
    texts = of_texts()
    with pytest.raises(RecipeError, match="train: lora puts adapters .* which Noisy does not have. Set"):
        build_parts(load_recipe(recipe(a={"train": "lora"})))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RecipeError, match=r"train: lora needs peft .*: pip install 'vicjoint\[lora\]'"):
        build_parts(load_recipe(texts))
