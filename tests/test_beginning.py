"""A branch that begins as another run's encoder: `weights_from`."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch

import vicjoint
from vicjoint.evaluate import main as evaluate
from vicjoint.export import export
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.training import checkpoint
from vicjoint.training.build import build_parts

QUICK = {"evaluate": {"last": False, "explorer": 0, "probes": []}}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """A second of plots, which no test here looks at."""
    monkeypatch.setattr("vicjoint.training.loop.write_report", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run whose two branches have encoders of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vicjoint.training.loop.write_report", lambda folder: folder / "report.html")
        return vicjoint.train(tiny.recipe(**QUICK), [f"out={tmp_path_factory.mktemp('first') / 'run'}"])


def recipe(a=(), b=(), **changes) -> dict:
    return tiny.recipe(a=tiny.branch(**dict(a)), b=tiny.branch(**dict(b)), **(QUICK | changes))


def encoder_of(state: dict, branch: str) -> dict:
    prefix = f"branches.{branch}.encoder."
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def equal(one: dict, other: dict) -> bool:
    assert one.keys() == other.keys() and one
    return all(torch.equal(x, other[name]) for name, x in one.items())


def state_of(folder) -> dict:
    return checkpoint.load_last(folder / "checkpoints")["model"]


@pytest.mark.parametrize("branch", ["", ":a", ":b"])
@pytest.mark.parametrize("as_export", [False, True], ids=["run", "export"])
def test_an_encoder_begins_as_that_of_a_run_or_an_export(branch, as_export, first, tmp_path, capsys):
    folder = export(first, tmp_path / "export") if as_export else first
    parts = build_parts(load_recipe(recipe(b={"weights_from": f"{folder}{branch}"})))
    expected = encoder_of(state_of(first), branch[1:] or "a")
    assert equal(encoder_of(parts.model.state_dict(), "b"), expected)
    assert equal(encoder_of(parts.untrained.state_dict(), "b"), expected)
    other = build_parts(load_recipe(recipe())).model.state_dict()
    assert equal(encoder_of(parts.model.state_dict(), "a"), encoder_of(other, "a"))
    digits = parts.begins["b"].hash
    said = f"b: its encoder begins as that of branch {branch[1:] or 'a'} of {folder} ({digits})\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("how, stays", [("expander", True), ("frozen", True), ("full", False)])
def test_a_locked_encoder_is_still_that_of_the_run_after_training(how, stays, first, tmp_path):
    written = recipe(b={"weights_from": f"{first}:b", "train": how})
    folder = vicjoint.train(written, [f"out={tmp_path / 'run'}"])
    assert equal(encoder_of(state_of(folder), "b"), encoder_of(state_of(first), "b")) == stays
    said = json.loads((folder / "environment.json").read_text())["weights_from"]
    assert list(said) == ["b"] and len(said["b"]) == 12


@pytest.mark.parametrize("b", [{"weights": "ema"}, {"weights": "same"}])
def test_a_branch_that_follows_begins_so_too(b, first):
    state = build_parts(load_recipe(recipe({"weights_from": f"{first}:b"}, b))).model.state_dict()
    assert equal(encoder_of(state, "b"), encoder_of(state_of(first), "b"))
    with pytest.raises(RecipeError, match="b.weights_from: .* is for a branch with weights of its own"):
        load_recipe(recipe({}, b | {"weights_from": str(first)}))


def test_what_is_trained_needs_the_folder_no_more(first, tmp_path, capsys):
    """To encode; evaluations compare with the model before its first step, and say what they miss."""
    gone = shutil.copytree(first, tmp_path / "gone")
    folder = vicjoint.train(recipe({"weights_from": str(gone)}), [f"out={tmp_path / 'run'}"])
    shutil.rmtree(gone)
    raw = torch.rand(3, 6)
    with torch.no_grad():
        y = vicjoint.load_encoder(folder)(raw)
        again = vicjoint.load_encoder(export(folder, tmp_path / "export"))(raw)
    assert torch.equal(y, again)
    assert evaluate([str(folder), "a.train=full"]) == 2
    assert f"a.weights_from: {gone}: no such folder" in capsys.readouterr().err
    assert evaluate([str(folder), f"a.weights_from={first}"]) == 0


def test_a_run_goes_on_from_a_moved_folder_but_not_from_other_weights(first, tmp_path, capsys):
    written = recipe({"weights_from": str(first)})
    run = vicjoint.train(written, [f"out={tmp_path / 'run'}"])
    more = [f"out={run}", "train.steps=16", "checkpoint.may_change=[length]"]
    with pytest.raises(RecipeError, match=r"a.weights_from: .* holds another encoder \(\w{12}\) than"):
        vicjoint.train(written, [*more, f"a.weights_from={first}:b"])
    moved = shutil.copytree(first, tmp_path / "moved")
    vicjoint.train(written, [*more, f"a.weights_from={moved}"])
    assert "going on from step 14 of 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    "branch, message",
    [
        ({"weights_from": "nowhere"}, "a.weights_from: nowhere: no such folder. Expected a run folder or an"),
        ({"weights_from": "."}, "a.weights_from: . has no recipe.yaml. Expected a run folder or an export"),
        ({"weights_from": "FIRST:c"}, "a.weights_from: FIRST has no branch 'c'. Known: a, b."),
        (
            {"weights_from": "FIRST", "encoder": {"name": "noisy", "dim": 4}},
            "a.weights_from: branch 'a' of FIRST has another encoder: dim is 8 there and 4 here. Give its"
            " own: 'a.encoder={name: noisy}'",
        ),
        (
            {"weights_from": "FIRST", "modality": "features", "encoder": {"name": "mlp"}},
            "a.weights_from: branch 'a' of FIRST is of modality 'tiny_numbers', and a of 'features'. Name",
        ),
        ({"weights_from": "EMPTY"}, "a.weights_from: EMPTY has no checkpoint. Run its recipe with out=EMPTY"),
        ({"weights_from": "DAMAGED"}, "a.weights_from: DAMAGED/model.safetensors cannot be read: "),
    ],
)
def test_what_cannot_be_begun_from(branch, message, first, tmp_path):
    places = {"FIRST": first, "EMPTY": tmp_path / "empty", "DAMAGED": tmp_path / "damaged"}
    for name in ("EMPTY", "DAMAGED"):
        places[name].mkdir()
        shutil.copy(first / "recipe.yaml", places[name])
    (places["DAMAGED"] / "model.safetensors").write_bytes(b"no tensors")
    for name, place in places.items():
        branch = branch | {"weights_from": branch["weights_from"].replace(name, str(place))}
        message = message.replace(name, str(place))
    modality = {"modality": {"name": "features", "input_dim": 6}} if "modality" in branch else {}
    with pytest.raises(RecipeError) as raised:
        build_parts(load_recipe(recipe(branch | modality)))
    assert str(raised.value).startswith(message)


def test_tensors_that_do_not_fit_although_the_options_do(first, monkeypatch):
    built = tiny.Noisy.__init__

    def wider(self, *given, **named):
        built(self, *given, **named)
        self.net[0] = torch.nn.Linear(6, 15)

    monkeypatch.setattr(tiny.Noisy, "__init__", wider)
    said = (
        r"a.weights_from: its tensors do not fit .*: encoder.net.0.bias, encoder.net.0.weight \(2 are missing"
    )
    with pytest.raises(RecipeError, match=said):
        build_parts(load_recipe(recipe({"weights_from": str(first)})))


def test_a_run_with_adapters_is_to_be_exported_first(first, tmp_path):
    folder = shutil.copytree(first, tmp_path / "lora")
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("train: full", "train: lora"))
    with pytest.raises(RecipeError, match=f"has adapters beside its weights. Export it.*{folder} --to"):
        build_parts(load_recipe(recipe({"weights_from": str(folder)})))


def test_standardisation_comes_with_the_encoder(tmp_path, capsys):
    """It is learnt once, from the rows that the encoder has seen."""
    numbers = np.random.default_rng(0).normal(3, 2, (40, 6))

    def table(name: str, rows: np.ndarray):
        cells = [f'"{row.tolist()}",{"test" if i < 8 else "train"}' for i, row in enumerate(rows)]
        (tmp_path / name).write_text("x,split\n" + "\n".join(cells) + "\n")
        return {"name": "table", "root": str(tmp_path / name)}

    def of(source: dict, **a) -> dict:
        modality = {"name": "features", "input_dim": 6, "standardise": "mean_std"}
        branch = {"modality": modality, "encoder": {"name": "mlp"}, "expander": [16, 12]}
        pair = {"name": "cross_modal", "a": "x", "b": "x"}
        return tiny.recipe(a=branch | a, b=branch, source=source, pair=pair, **QUICK)

    begun = vicjoint.train(of(table("one.csv", numbers)), [f"out={tmp_path / 'one'}"])
    capsys.readouterr()
    written = of(table("two.csv", numbers * 5), weights_from=str(begun), train="expander")
    folder = vicjoint.train(written, [f"out={tmp_path / 'two'}"])
    states = {run: state_of(run) for run in (begun, folder)}
    means = [name for name in states[begun] if name.startswith("branches.a.modality")]
    assert means and all(torch.equal(states[begun][name], states[folder][name]) for name in means)
    assert not all(torch.equal(x, states[begun][n]) for n, x in states[folder].items() if ".b.modality" in n)
    assert "\na: " not in capsys.readouterr().out.split("its encoder begins")[1]
