"""Features made elsewhere: read from cells and files, standardised by training rows, masked, kept."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torchrun import torchrun
from two_texts import BRANCH
from wrong import refused

import vicjoint
from vicjoint import build_encoder
from vicjoint.batch import concatenate
from vicjoint.embed import main as embed
from vicjoint.evaluate import main as evaluate
from vicjoint.export import main as export
from vicjoint.modalities.features import Features
from vicjoint.modalities.standard import mean_std, robust, spherize
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.registry import build
from vicjoint.run import main as run
from vicjoint.sources.base import SourceError
from vicjoint.training import checkpoint
from vicjoint.training.build import build_parts
from vicjoint.training.resuming import restore

ROWS, WIDTH, TOKENS = 40, 6, 3
ENCODERS = {"mlp": {"width": 8}, "transformer": {"width": 8, "heads": 2, "layers": 1}}


@pytest.fixture(scope="module")
def values():
    """[ROWS, WIDTH] float64 of very different scales, the columns correlated."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(ROWS, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH))) * 10.0 ** np.arange(-2, 4) + 7


def standardised(found, rows):
    y = (rows - found.shift) * found.factor
    return y if found.whitening is None else y @ found.whitening


# ---- known answers ----


def test_mean_and_standard_deviation(values):
    y = standardised(mean_std(values), values)
    assert np.allclose(y.mean(0), 0, atol=1e-9) and np.allclose(y.std(0), 1)


def test_robust_is_the_median_and_the_median_distance_from_it(values):
    values = values.copy()
    values[0] = 1e6  # one outlier moves nothing
    median = np.median(values, 0)
    mad = np.median(np.abs(values - median), 0)
    assert np.allclose(standardised(robust(values), values), (values - median) / (1.4826 * mad))


def test_robust_without_median_distance_takes_the_standard_deviation():
    rows = np.array([[1.0], [1.0], [1.0], [5.0]])
    found = robust(rows)
    assert found.factor[0] == pytest.approx(1 / rows.std())
    assert "median distance 0, so by standard deviation: 1 value (number 0)" in found.words


def test_spherized_rows_have_the_identity_as_their_covariance(values):
    found = spherize(values)
    assert np.allclose(np.cov(standardised(found, values).T), np.eye(WIDTH), atol=1e-9)
    assert np.allclose(found.whitening, found.whitening.T)  # no rotation


def test_fewer_rows_than_values_are_spherized_where_they_vary(values):
    found = spherize(values[:4])
    spectrum = np.linalg.eigvalsh(np.cov(standardised(found, values[:4]).T))
    assert np.allclose(spectrum, [0, 0, 0, 1, 1, 1], atol=1e-9)
    assert "they vary in 3 of 6 directions, the others are left out" in found.words


@pytest.mark.parametrize("kind", [mean_std, robust, spherize])
def test_constant_and_missing_values(kind, values):
    rows = values.copy()
    rows[:, 1], rows[:, 2], rows[3, 4], rows[5, 4] = 3.3, np.nan, np.nan, np.inf
    found = kind(rows)
    assert found.factor[1] == found.factor[2] == 0 and np.isfinite(found.shift).all()
    assert "42 of 240 numbers missing, in 2 values (number 2, 4)" in found.words
    assert "without variation and left out: 2 values (number 1, 2)" in found.words
    if kind is mean_std:
        assert found.shift[4] == pytest.approx(np.delete(values[:, 4], [3, 5]).mean())


def test_the_modality_does_the_same(values):
    modality = Features(WIDTH, standardise="spherize")
    raws = [modality.read(row.tolist()) for row in values]
    assert modality.fit(raws, ROWS) == "standardised by 40 rows (spherize)"
    y = modality.simple_features(concatenate(raws))
    assert torch.allclose(torch.cov(y.T), torch.eye(WIDTH), atol=1e-3)
    vectors = torch.from_numpy(values).float()
    assert torch.equal(modality.simple_features(vectors), y)  # a raw batch of vectors


def test_missing_numbers_are_the_mean_and_clip_bounds(values):
    modality = Features(WIDTH, missing="mean", clip=1.5)
    modality.fit([modality.read(row.tolist()) for row in values], ROWS)
    row = values[0].copy()
    row[2], row[3], row[4] = np.nan, np.inf, 1e9
    y, _ = modality(modality.read(row.tolist()))
    assert y[0, 0, 2] == y[0, 0, 3] == 0 and y[0, 0, 4] == 1.5 and y.isfinite().all()


def test_statistics_look_at_some_of_many(values, monkeypatch):
    monkeypatch.setattr("vicjoint.modalities.features.MOST_NUMBERS", 10 * WIDTH)
    modality = Features(WIDTH)
    assert modality.fit((modality.read(row.tolist()) for row in values), ROWS).startswith(
        "standardised by 10"
    )
    assert torch.allclose(modality.shift, torch.from_numpy(values[::4].mean(0)).float())
    tokens = modality.read(values.tolist())  # one sequence, of which 10 tokens
    with pytest.raises(ValueError, match="0 training rows can be read"):
        modality.fit([], 1)
    assert "by 10 rows" in modality.fit([tokens], 1)


# ---- reading ----


@pytest.fixture(scope="module")
def files(tmp_path_factory, values):
    h5py = pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "vector.npy", values[5].astype(np.float16))
    np.save(folder / "all.npy", values)
    np.savez(folder / "one.npz", x=values)
    np.savez(folder / "two.npz", x=values, y=values[5])
    with h5py.File(folder / "f.h5", "w") as file:
        file["esm/P1"] = values[5]
        file["all"] = values
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "texts.npy", np.array(["a"]))
    np.save(folder / "cube.npy", np.zeros((2, 2, 2)))
    (folder / "cut.npy").write_bytes((folder / "all.npy").read_bytes()[:200])
    (folder / "cut.npz").write_bytes((folder / "one.npz").read_bytes()[:200])
    (folder / "cut.h5").write_bytes((folder / "f.h5").read_bytes()[:900])
    return folder


@pytest.mark.parametrize(
    "cell, key",
    [
        ("all.npy#5", None),
        ("one.npz##5", None),
        ("one.npz#x#5", None),
        ("two.npz#y", None),
        ("two.npz", "y"),
        ("two.npz#5", "x"),
        ("f.h5#esm/P1", None),
        ("f.h5#all#5", None),
        ("f.h5#5", "all"),
    ],
)
def test_a_row_of_a_file(cell, key, files, values):
    if "##" in cell:
        cell, key = cell.replace("##", "#"), "x"
    x, mask = Features(WIDTH, key=key).read(str(files / cell))
    assert x.shape == (1, 1, WIDTH) and x.dtype == torch.float32 and mask.tolist() == [[True]]
    assert np.allclose(x[0, 0], values[5])


def test_whole_files(files, values):
    assert np.allclose(Features(WIDTH).read(str(files / "vector.npy"))[0][0, 0], values[5], rtol=1e-3)
    x, mask = Features(WIDTH).read(str(files / "one.npz"))
    assert np.allclose(x[0], values) and mask.shape == (1, ROWS) and mask.all()


def test_long_sequences_are_cut(files, values):
    modality = Features(WIDTH, length=10)
    assert np.allclose(modality.read(str(files / "all.npy"))[0][0], values[15:25])  # the middle
    starts = {
        int(np.abs(values - x[0, 0].numpy()).sum(1).argmin())
        for x, _ in (modality.read(str(files / "all.npy"), np.random.default_rng(i)) for i in range(200))
    }
    assert starts == set(range(31))


@pytest.mark.parametrize(
    "cell, message",
    [
        ("gone.npy", "gone.npy: no such file"),
        ("x.txt", "expected a list of numbers, or a file ending in .npy .npz"),
        ("objects.npy", "objects.npy: cannot be read as npy: .* Python objects"),
        ("texts.npy", "texts.npy: expected numbers, got"),
        ("cube.npy", r"cube.npy: an array of shape \[2, 2, 2\], expected \[6\] or \[T, 6\]"),
        ("cut.npy", "cut.npy: cannot be read as npy"),
        ("cut.npz", "cut.npz: cannot be read as npz"),
        ("cut.h5", "cut.h5: cannot be read as HDF5"),
        ("two.npz", r"two.npz: has 2 arrays \(x, y\). Name one: the modality's key, or .*two.npz#KEY"),
        ("two.npz#z", "two.npz: has no array 'z'.* It has x, y"),
        ("f.h5#esm", "f.h5: 'esm' is a group of P1"),
        ("all.npy#40", r"all.npy#40: there is no row '40'; the array is \[40, 6\]"),
        ("all.npy#x", "there is no row 'x'"),
    ],
)
def test_what_cannot_be_read(cell, message, files):
    with pytest.raises(ValueError, match=message):
        Features(WIDTH).read(str(files / cell))


@pytest.mark.parametrize(
    "cell, message",
    [
        ([1.0, 2.0], r"^an array of shape \[2\], expected \[6\] or \[T, 6\] \(the modality's input_dim\)"),
        ([[1.0], [1.0, 2.0]], "expected numbers, got lists of different lengths"),
        ([], r"shape \[0\]"),
        ([1, 2, None, 4, 5, 6], "number 2 is nan. Correct it, or set the modality's missing=mean"),
        ([[1] * 6, [1, 2, 3, 4, 1e300, float("nan")]], "number 4 of token 1 is inf, 2 such numbers in all"),
        (["a"] * 6, "expected numbers, got"),
    ],
)
def test_cells_that_are_no_vector(cell, message):
    with pytest.raises(ValueError, match=message):
        Features(WIDTH).read(cell)


def test_wrong_options():
    refused("modality", "features", {"input_dim": 0})
    refused("modality", "features", {"input_dim": 4, "standardise": "zca"})
    refused("modality", "features", {"input_dim": 4, "standardise": None, "missing": "mean"}, "needs what")
    refused("modality", "features", {"input_dim": 4, "standardise": None, "controls": {"a": 1}}, "needs what")


# ---- encoders ----


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_changes_nothing(name, values):
    torch.manual_seed(0)
    modality = Features(WIDTH)
    encoder = build_encoder("features", name, input_dim=WIDTH, dim=5, **ENCODERS[name]).eval()
    raws = [modality.read(values[a:b].tolist()) for a, b in ((0, 2), (2, 9), (9, 10))]
    modality.fit(raws, len(raws))
    x, mask = concatenate(raws)
    together = encoder(modality((x.masked_fill(~mask[..., None], 1e3), mask)))
    alone = torch.cat([encoder(modality(raw)) for raw in raws])
    assert together.shape == (3, encoder.dim) and torch.allclose(together, alone, atol=1e-5)
    simple = torch.cat([modality.simple_features(raw) for raw in raws])
    assert torch.allclose(modality.simple_features((x, mask)), simple, atol=1e-5)
    tokens, mask = encoder.forward_tokens(modality((x, mask)))
    assert tokens.shape[:2] == mask.shape == (3, 7)


# ---- tables ----


def write_profiles(path, values, **changes):
    """A csv of wells: columns of numbers in the form of CellProfiler's, a role, and a text."""
    names = [f"Cells_{i}" for i in range(4)] + [f"Nuclei_{i}" for i in range(2)]
    with open(path, "w", newline="") as file:
        out = csv.DictWriter(file, ["id", "role", *names, "text", "split"])
        out.writeheader()
        for i, row in enumerate(values):
            cells = {"id": f"w{i}", "role": "negcon" if i % 2 else "drug", "text": f"text {i % 7}"}
            cells |= {"split": "test" if i % 4 == 0 else "train"}
            out.writerow(cells | {n: f"{v:.9g}" for n, v in zip(names, row)} | changes.get(f"w{i}", {}))
    return path


VECTORS = {"profile": ["Nuclei_*", "Cells_*"]}


def test_columns_become_a_vector(tmp_path, values):
    path = write_profiles(
        tmp_path / "t.csv", values, w3={"Cells_1": "nan"}, w5={"Cells_1": "", "Nuclei_0": "inf"}
    )
    source = build("source", {"name": "table", "root": str(path), "vectors": VECTORS})
    record = next(r for r in source.train if r["id"] == "w7")
    assert record["profile"].dtype == np.float32 and np.allclose(record["profile"], values[7])
    assert not any(name.startswith("Cells_") for name in record) and record["role"] == "negcon"
    assert source.describe().endswith(
        "; profile: 6 columns, 3 of 240 numbers missing or infinite, in 2 of the columns: Cells_1 (2),"
        " Nuclei_0 (1)"
    )


@pytest.mark.parametrize(
    "patterns, changes, message",
    [
        (
            ["Cels_*"],
            {},
            r"no column matches 'Cels_\*' \(option vectors\). Did you mean 'Cells_.'\? Columns: id,",
        ),
        (["Cells_*", "role"], {}, "line 2: column 'role' is 'drug', expected a number"),
        (["Cells_*"], {"w2": {"Cells_3": "1,5"}}, "line 4: column 'Cells_3' is '1,5'"),
    ],
)
def test_columns_that_make_no_vector(patterns, changes, message, tmp_path, values):
    path = write_profiles(tmp_path / "t.csv", values, **changes)
    with pytest.raises(SourceError, match=message):
        build("source", {"name": "table", "root": str(path), "vectors": {"profile": patterns}})


@pytest.mark.parametrize("fixed", [True, False])
def test_lists_in_parquet_are_arrays(fixed, tmp_path, values):
    kind = pa.list_(pa.float32(), WIDTH) if fixed else pa.list_(pa.float64())
    one = [None, *values.tolist()[1:]]
    tokens = [values[: 1 + i % 3].tolist() for i in range(ROWS)]
    table = {"x": pa.array(one, kind), "t": pa.array(tokens, pa.list_(kind)), "n": pa.array([[1, 2]] * ROWS)}
    parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    source = build("source", {"name": "table", "root": str(tmp_path / "t.parquet")})
    records = {r["id"]: r for r in [*source.train, *source.test]}
    assert records["row 1"]["x"] is None and records["row 1"]["n"] == [1, 2]
    assert np.allclose(records["row 2"]["x"], values[1]) and records["row 3"]["t"].shape == (3, WIDTH)
    modality = Features(WIDTH)
    assert modality.read(records["row 3"]["t"])[0].shape == (1, 3, WIDTH)


# ---- runs ----


def recipe(folder, values, **a):
    write_profiles(folder / "t.csv", values, w9={"Cells_2": ""})
    modality = {
        "name": "features",
        "input_dim": WIDTH,
        "missing": "mean",
        "controls": {"role": "NegCon"},
        **a,
    }
    found = {
        "name": "f",
        "source": {"name": "table", "root": "t.csv", "vectors": VECTORS},
        "pair": {"name": "cross_modal", "a": "profile", "b": "text"},
        "a": {"modality": modality, "encoder": {"name": "mlp", "width": 8, "dim": 6}, "expander": [4]},
        "b": BRANCH,
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
        "train": {"steps": 4, "batch_size": 10},
        "data": {"workers": 0},
        "checkpoint": {"every": 2},
        "evaluate": {"probes": [{"name": "linear", "label": "role", "branch": "a"}]},
    }
    (folder / "f.yaml").write_text(json.dumps(found))
    return folder / "f.yaml"


def check_learnt(folder, values, said):
    assert (
        "a: standardised by 20 rows of role NegCon (mean_std); 1 of 120 numbers missing, in 1 value (number"
        " 2)" in said
    )
    rows = values[1::2].astype(np.float32)
    rows[4, 2] = np.nan
    state = checkpoint.load_last(folder / "checkpoints")["model"]
    assert np.allclose(state["branches.a.modality.shift"], np.nanmean(rows, 0), rtol=1e-5)
    assert np.allclose(state["branches.a.modality.factor"], 1 / np.nanstd(rows, 0), rtol=1e-4)
    results = json.loads((folder / "evaluation.json").read_text())["linear"]
    assert {"model", "random_init", "input_features"} <= set(results)


def test_a_run_learns_from_the_controls(tmp_path, values, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe(tmp_path, values)
    assert run(["f.yaml", "out=r"]) == 0
    check_learnt(tmp_path / "r", values, capsys.readouterr().out)


@pytest.mark.slow
def test_several_processes_learn_the_same(tmp_path, values):
    recipe(tmp_path, values)
    done = torchrun(tmp_path, 2, "-m", "vicjoint.run", "f.yaml", "out=r")
    check_learnt(tmp_path / "r", values, done.stdout)


def test_what_was_learnt_stays(tmp_path, values, monkeypatch, capsys):
    """In a run that goes on, in an evaluation on other data, in the row random_init, in exports, and where a
    table is embedded."""
    monkeypatch.chdir(tmp_path)
    recipe(tmp_path, values, standardise="spherize", controls=None)
    assert run(["f.yaml", "out=r", "train.steps=2"]) == 0
    monkeypatch.setattr(Features, "fit", lambda *_: pytest.fail("fitted again"))
    assert run(["f.yaml", "out=r", "checkpoint.may_change=[length]"]) == 0
    before = json.loads((tmp_path / "r" / "evaluation.json").read_text())["linear"]
    assert evaluate(["r", "--json", "again.json"]) == 0
    assert json.loads((tmp_path / "again.json").read_text())["linear"] == before

    parts = build_parts(load_recipe("r/recipe.yaml"))
    restore(parts, checkpoint.load_last(tmp_path / "r" / "checkpoints"))
    two = [model.branches["a"].modality.whitening for model in (parts.model, parts.untrained)]
    assert torch.equal(*two) and not torch.equal(two[0], torch.eye(WIDTH))

    assert export(["r", "--to", "e"]) == 0
    rows = torch.from_numpy(values).float()
    of_run, of_export = vicjoint.load_encoder("r"), vicjoint.load_encoder("e")
    assert torch.equal(of_run(rows), of_export(rows))
    assert embed(["r", "t.csv", "--to", "y.parquet"]) == 0
    table = parquet.read_table("y.parquet")
    assert table.column_names == ["item", "embedding", "id", "role", "text", "split"]
    assert table["item"][1].as_py() == f"{tmp_path / 't.csv'}, row 2"
    expected = of_run(torch.from_numpy(np.where(np.arange(ROWS)[:, None] == 9, 0, values)).float())
    found = torch.tensor(table["embedding"].to_pylist())
    others = [i for i in range(ROWS) if i != 9]
    assert torch.allclose(found[others], expected[others], atol=1e-4)

    # a file of embed is a table of features
    again = ["a.modality={name: features, input_dim: 6}", "pair.a=embedding"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    source = "source={name: table, root: y.parquet}"
    assert run(["f.yaml", "out=r2", source, *again]) == 0
    assert "a: standardised by 30 rows (mean_std)" in capsys.readouterr().out


def test_vectors_of_another_length_are_bad_samples(tmp_path, values, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe(tmp_path, values, input_dim=5)
    assert run(["f.yaml", "out=r"]) == 1
    assert (
        "column 'profile': an array of shape [6], expected [5] or [T, 5] (the modality's input_dim)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "controls, message",
    [
        ({"role": "dmso"}, "a.modality.standardise: 0 training rows of role dmso can be read"),
        ({"rolle": "x"}, "a.modality.controls: column 'rolle' is not in the table.* Did you mean 'role'"),
    ],
)
def test_wrong_controls(controls, message, tmp_path, values, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        vicjoint.train(str(recipe(tmp_path, values, controls=controls)), ["out=r"])
