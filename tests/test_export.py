"""What a run becomes for others: a folder with a card that says what it is, the hub, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from exporting import exported, pixels, recipe, untrained
from PIL import Image

import vicjoint
from vicjoint import export, hub
from vicjoint.exporting import facts
from vicjoint.exporting.card import as_text
from vicjoint.recipe import RecipeError
from vicjoint.report.tables import number

CONV = {"name": "pooled_conv", "widths": [4, 8], "strides": [2, 2]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Six steps on real files of two classes."""
    place = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("dark", "light"):
            (place / "pictures" / split / name).mkdir(parents=True)
            for i in range(8):
                values = rng.integers(0, 128, (20, 20, 3)) + 127 * (name == "light")
                path = place / "pictures" / split / name / f"{i}.png"
                Image.fromarray(values.astype(np.uint8)).save(path)
    described = recipe(
        CONV,
        source={"name": "image_folder", "root": str(place / "pictures")},
        train={"steps": 6, "batch_size": 8},
        checkpoint={"every": 2, "keep": 9},
        evaluate={"every": 4, "probes": [{"name": "knn", "k": [3]}]},
        data={"workers": 0},
    )
    return vicjoint.train(described, [f"out={place / 'run'}"])


@pytest.fixture(scope="module")
def folder(run) -> Path:
    to = run.parent / "exported"
    assert export.main([str(run), "--to", str(to)]) == 0
    return to


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert export.main([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    assert not said.out and "Traceback" not in said.err
    return said.err


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- the folder ----


def test_an_export_gives_what_the_run_gives(run, folder, monkeypatch):
    raw = pixels()
    expected = vicjoint.load_encoder(run)(raw)
    for encoder in (vicjoint.load_encoder(folder), vicjoint.from_pretrained(folder)):
        assert torch.equal(encoder(raw), expected) and encoder.dim == 32 and not encoder.training
    monkeypatch.chdir(folder)
    assert torch.equal(vicjoint.from_pretrained(".", branch="b")(raw), expected)
    assert (folder / "recipe.yaml").read_bytes() == (run / "recipe.yaml").read_bytes()
    assert sorted(tree(folder)) == [
        *("README.md", "config.json", "evaluation.json", "model.safetensors"),
        *("preprocessor_config.json", "recipe.yaml"),
    ]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "some are not readable as the others"


def test_the_card_says_steps_data_and_every_number_of_every_row(run, folder):
    card = (folder / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["library_name"] == "vicjoint" and {"vicreg", "image"} <= set(front["tags"])
    assert "license" not in front and "[More Information Needed]" not in card
    assert "steps: 6 of 6" in text and "16 train, 16 test" in text and str(run.parent / "pictures") in text
    results = json.loads((run / "evaluation.json").read_text())
    assert {"model", "random_init", "pixels", "chance"} <= set(results["knn"])
    for row, metrics in results["knn"].items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {row} |"))
        cells = [cell.split()[0].strip("*") for cell in line.split("|")[2:-1]]
        values = [value for name, value in metrics.items() if not name.endswith(("_low", "_high"))]
        assert values and [cell for cell in cells if cell != "–"] == [number(value) for value in values]
    words = json.loads((run / "environment.json").read_text())["metrics"]["knn"]
    shown = [metric for metric in results["knn"]["model"] if metric in words]
    assert shown and all(as_text(words[metric][0]) in text for metric in shown)
    assert "a sceptic" in text and "SAMPLE DATA" not in text
    assert "name: pooled_conv" in text and "uint8 tensor (B, 3, 16, 16) -> (B, 32)" in text


def test_the_card_has_the_numbers_of_the_step_that_is_exported(run, tmp_path):
    of_step = {}
    for step in ("2", "4"):
        assert export.main([str(run), "--to", str(tmp_path / step), "--step", step]) == 0
        of_step[step] = (tmp_path / step / "README.md").read_text()
        assert f"steps: {step} of 6" in of_step[step]
    assert "was not evaluated at this step" in of_step["2"] and not (tmp_path / "2/evaluation.json").exists()
    (line,) = (json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines())
    assert line["step"] == 4 and json.loads((tmp_path / "4/evaluation.json").read_text()) == line["results"]
    assert "after 4 steps" in of_step["4"]


def test_sample_data_are_announced(tmp_path):
    said = "SAMPLE DATA: source.root is not given."
    card = (exported(tmp_path, recipe(CONV, announcement=said)) / "README.md").read_text()
    assert card.index(said) < card.index("## Training") and card.count(said) == 3  # the recipe's own
    assert "nothing here says anything about real data" in card and "not recorded" in card


def test_an_export_of_an_export_is_the_same(folder, tmp_path):
    assert export.main([str(folder), "--to", str(tmp_path / "again")]) == 0
    assert tree(tmp_path / "again") == tree(folder)


def test_what_simpler_rows_do_better_is_a_limit(folder, tmp_path):
    old = untrained(tmp_path / "from", recipe(CONV))
    trained = json.loads((folder / "config.json").read_text())["training"]
    trained |= {"step": 3, "steps": 9, "bad_samples": 2, "source": "a [b](c) | <d>"}
    trained["metrics"] = {"knn": {"accuracy": ["share of <hits>", "higher"], "k": ["", None]}}
    (old / "config.json").write_text(json.dumps({"library_name": "vicjoint", "training": trained}))
    rows = {"model": {"accuracy": 0.25, "k": 1}, "pixels|`": {"accuracy": 0.75, "k": 9}}
    (old / "evaluation.json").write_text(json.dumps({"knn": rows}))
    assert export.main([str(old), "--to", str(tmp_path / "to")]) == 0
    card = (tmp_path / "to" / "README.md").read_text()
    assert "is better here than the model: knn accuracy (pixels&#124;&#96; 0.750, model 0.250)." in card
    assert "| pixels&#124;&#96; | **0.750** | 9.000 |" in card and "share of &lt;hits&gt;" in card
    assert "a &#91;b&#93;(c) &#124; &lt;d&gt;" in card and "2 samples could not be read" in card
    assert "steps: 3 of 9" in card


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "<script>", "|", "[a](b)", "`", "*a*", "\u202e"])
def test_text_from_data_stays_text(text):
    shown = as_text(text)
    assert not set(shown) & set("\n\x1b<>|[]`*\u202e")


# ---- what comes before the encoder ----


def test_transformers_image_processor_takes_the_facts_as_they_are(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    facts_of_a = json.loads((folder / "preprocessor_config.json").read_text())["a"]
    names = ("do_", "size", "resample", "crop_size", "rescale_factor", "image_")
    own = {key: value for key, value in facts_of_a.items() if key.startswith(names)}
    ramp = np.linspace(0, 255, 40 * 60).reshape(40, 60)
    picture = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    given = transformers.CLIPImageProcessor(**own)(Image.open(tmp_path / "p.png"), return_tensors="pt")
    from vicjoint.pairs.augment import Augment

    (view,) = Augment(size=16).views({"id": "p", "path": str(tmp_path / "p.png")}, "a")
    expected = vicjoint.load_encoder(folder).modality(view.raw)
    assert given["pixel_values"].shape == expected.shape
    assert (given["pixel_values"] - expected).abs().max() < 0.05 < expected.std()


def test_facts_of_pairs_that_read_for_themselves_and_of_those_that_do_not():
    from vicjoint.model import build_model
    from vicjoint.recipe import load_recipe

    def said(pair, modality, encoder):
        checked = load_recipe(recipe(encoder, modality, pair), check_paths=False)
        return facts.preprocessing(checked, build_model(checked))["a"]

    pair = {"name": "next_frame", "frames": 3, "stride": 4, "size": 24, "centre": 0.5, "gap": 2}
    clip = said(pair, "clip", {"name": "conv_gru", "width": 4, "dim": 8})
    assert clip["shape"] == [3, 3, 24, 24] and (clip["stride"], clip["centre"]) == (4, 0.5)
    of_modality = {"name": "clip", "frames": 2, "window": 0.5, "size": 24}
    pair = {"name": "cross_modal", "a": "x", "b": "y"}
    clip = said(pair, of_modality, {"name": "conv_gru", "width": 4, "dim": 8})
    assert clip["seconds"] == 0.5 and "stride" not in clip and clip["shape"] == [3, 2, 24, 24]
    pytest.importorskip("soundfile")
    sound = {"name": "audio", "rate_hz": 8000, "seconds": 2.0, "short": "repeat"}
    net = {"name": "resnet1d18", "width": 4}
    assert said(pair, sound, net) == {
        **{"shape": [16000], "dtype": "float32", "sampling_rate": 8000, "channels": 1},
        **{"range": [-1.0, 1.0], "seconds": 2.0, "short": "repeat"},
    }
    windowed = said(pair | {"seconds": 0.25}, sound, net)
    assert (windowed["shape"], windowed["short"]) == ([2000], "zeros")


# ---- where it goes ----


def test_other_files_are_not_mixed_with_an_export(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my own")
    before = tree(tmp_path)
    assert "mine holds files, but no export. Give an empty or a new folder." in refused(
        capsys, run, "--to", tmp_path / "mine"
    )
    assert "holds files, but no export" in refused(capsys, run, "--to", run)
    assert "README.md is a file. Expected a folder, or a file ending in .pth" in refused(
        capsys, run, "--to", tmp_path / "mine" / "README.md"
    )
    assert tree(tmp_path) == before and not list(run.glob(".export_*"))
    (tmp_path / "cloned" / ".git").mkdir(parents=True)
    assert export.main([str(run), "--to", str(tmp_path / "cloned")]) == 0


def test_a_card_that_somebody_changed_stays(run, tmp_path, capsys):
    to = tmp_path / "to"
    assert export.main([str(run), "--to", str(to)]) == 0
    (to / "README.md").write_text("mine")
    for _ in range(2):
        capsys.readouterr()
        assert export.main([str(run), "--to", str(to), "--branch", "b"]) == 0
        assert (
            f"{to / 'README.md'} was changed by somebody and stays; the new card is"
            in capsys.readouterr().out
        )
        assert (to / "README.md").read_text() == "mine" and "# small" in (to / "README.new.md").read_text()


def test_weights_of_another_model_do_not_stay(run, tmp_path, capsys):
    to = tmp_path / "to"
    assert export.main([str(run), "--to", str(to)]) == 0
    (to / "a").mkdir()
    (to / "a" / "model.onnx").write_bytes(b"of this model")
    assert export.main([str(run), "--to", str(to)]) == 0  # the same model: it stays
    before = tree(to)
    said = refused(capsys, run, "--to", to, "--step", "2")
    assert "also has weights of another model: a/model.onnx. Delete them, or give another folder." in said
    assert tree(to) == before
    (to / "a" / "model.onnx").unlink()
    assert export.main([str(run), "--to", str(to), "--step", "2"]) == 0
    assert json.loads((to / "config.json").read_text())["training"]["step"] == 2


def test_branches_and_formats_that_are_none(run, tmp_path, capsys):
    said = refused(capsys, run, "--to", tmp_path / "to", "--branch", "c")
    assert "branch: 'c' is unknown. Expected 'a' or 'b'." in said
    said = refused(capsys, run, "--to", tmp_path / "x.pth", "--format", "onnx")
    assert "--format: onnx does not fit the file" in said
    said = refused(capsys, run, "--to", tmp_path / "to", "--step", "5")
    assert "has no checkpoint of step 5" in said and not list(tmp_path.iterdir())


def test_from_pretrained_gives_the_branch_that_was_asked_for(tmp_path):
    described = recipe(CONV, b={"modality": "image", "encoder": CONV, "expander": [8]})
    folder, raw = exported(tmp_path, described, "--branch", "b"), pixels()
    a, b = (vicjoint.load_encoder(folder, name)(raw) for name in "ab")
    assert torch.equal(vicjoint.from_pretrained(folder)(raw), b) and not torch.equal(a, b)
    assert torch.equal(vicjoint.from_pretrained(folder, branch="a")(raw), a)
    assert export.main([str(tmp_path / "from"), "--to", str(folder)]) == 0  # stays as it was set
    assert export.main([str(folder), "--to", str(tmp_path / "again")]) == 0
    for place in (folder, tmp_path / "again"):
        assert torch.equal(vicjoint.from_pretrained(place)(raw), b)


# ---- damaged, and from elsewhere ----


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "model.safetensors cannot be read: "),
        (b"x" * 1000, "Export the run, or fetch the file, again."),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "it is a pointer of Git LFS, not the file (git lfs pull)",
        ),
    ],
)
def test_damaged_weights(content, cause, tmp_path):
    old = untrained(tmp_path / "from", recipe(CONV))
    (old / "model.safetensors").write_bytes(content)
    with pytest.raises(RecipeError) as error:
        vicjoint.load_encoder(old)
    assert cause in str(error.value)


def test_weights_of_another_recipe(tmp_path):
    old = untrained(tmp_path / "from", recipe(CONV))
    text = (old / "recipe.yaml").read_text()
    (old / "recipe.yaml").write_text(text.replace("[4, 8]", "[4, 9]"))
    with pytest.raises(RecipeError, match="its weights do not fit its recipe.yaml: branches.a"):
        vicjoint.from_pretrained(old)


def test_damaged_facts(run, folder, tmp_path, capsys):
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "config.json").write_text("{")
    with pytest.raises(RecipeError, match=r"config.json cannot be read: .* Mend it, or delete it"):
        vicjoint.from_pretrained(copy)
    (copy / "config.json").unlink()  # an export of 0.1.0 had none
    assert vicjoint.from_pretrained(copy).dim == 32
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "evaluation.json").write_text("[]")
    assert "evaluation.json holds no JSON object" in refused(capsys, copy, "--to", tmp_path / "to")
    (copy / "evaluation.json").write_text('{"knn": 3}')
    assert "is of another form than this program writes" in refused(capsys, copy, "--to", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_folder_with_a_program_alone(folder, tmp_path):
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    (copy / "a").mkdir()
    (copy / "a" / "model.onnx").write_bytes(b"")
    with pytest.raises(RecipeError, match="is an export without model.safetensors; it has a/model.onnx"):
        vicjoint.load_encoder(copy)


# ---- the hub ----


def test_without_a_network_the_message_says_how_to_fetch():
    with pytest.raises(RecipeError) as error:
        vicjoint.from_pretrained("somebody/frames")
    said = str(error.value)
    assert said.startswith("somebody/frames: no such folder, and it cannot be fetched from the hub (")
    assert "hf download somebody/frames --local-dir FOLDER, then from_pretrained('FOLDER')" in said
    assert len(said.splitlines()) == 1
    for name in ("./frames", "/data/frames", "a/b/c"):
        with pytest.raises(
            RecipeError, match=f"{name}: no such folder. Expected an export, or the name of one"
        ):
            vicjoint.from_pretrained(name)


def test_what_the_hub_gives_is_read_like_a_folder(folder, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(name, revision, ignore_patterns):
        asked.append((name, revision, "*.onnx" in ignore_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    encoder = vicjoint.from_pretrained("somebody/frames", revision="v1")
    assert torch.equal(encoder(pixels()), vicjoint.load_encoder(folder)(pixels()))
    assert asked == [("somebody/frames", "v1", True)]


def test_an_export_is_uploaded_whole(folder, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))
            return f"hub/{name}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append((repo_id, Path(folder_path)))

    with pytest.raises(
        RecipeError, match="me/frames: .* cannot be uploaded to the hub .* hf upload me/frames"
    ):
        vicjoint.push_to_hub(folder, "me/frames")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert vicjoint.push_to_hub(folder, "me/frames", private=True) == "hub/me/frames"
    assert calls == [("me/frames", {"private": True, "exist_ok": True}), ("me/frames", folder)]
    with pytest.raises(
        RecipeError, match="is no export. Write one first: python -m vicjoint.export RUN --to"
    ):
        vicjoint.push_to_hub(tmp_path, "me/frames")
    assert hub.first_line(ValueError("")) == "ValueError"
