"""One rule for cells without a value, wherever one is read: labels, numbers, paths, keys, texts."""

import math

import numpy as np
import pytest
from PIL import Image

from vicjoint.files import cells
from vicjoint.files.cells import CellError
from vicjoint.parts import EvaluationData, Source
from vicjoint.probes.labels import labels_of, zero_or_one
from vicjoint.probes.pair_match import PairMatch
from vicjoint.probes.regression import Regression
from vicjoint.registry import build, load_built_in
from vicjoint.sources.table import Table

load_built_in()
MISSING = [
    "",
    "  ",
    "nan",
    "NaN",
    "null",
    "NULL",
    "None",
    "NA",
    "N/A",
    "n/a",
    " <NA> ",
    "#N/A",
    None,
    math.nan,
    [],
    b"",
    {"bytes": None, "path": None},
]


class Listed(Source):
    def __init__(self, train, test):
        self.train, self.test = (
            [{"id": f"{name}{i}", "label": value} for i, value in enumerate(of)]
            for name, of in (("train", train), ("test", test))
        )


def data(train, test) -> EvaluationData:
    return EvaluationData(("a", "b"), Listed(train, test), build("pair", {"name": "augment", "size": 8}))


@pytest.mark.parametrize("value", MISSING)
def test_every_place_takes_it_for_missing(value):
    record = {"id": "x", "c": value}
    assert cells.is_empty(value) and cells.cell(record, "c") is None and cells.cell(record, "other") is None
    assert zero_or_one(record, "c", "retrieval") is None
    for read in (cells.values, cells.as_text):
        with pytest.raises(CellError, match="column 'c' is empty"):
            read(record, "c")
    assert labels_of(data([value, "cat", "dog"], ["cat", value]), "label", "a").classes == ["cat", "dog"]
    numbers = Regression()._values(data([1, "2.5", value], [value, "7"]))
    assert numbers[0][:2].tolist() == [1, 2.5] and numbers[0][2].isnan() and numbers[1][0].isnan()


@pytest.mark.parametrize(
    "value", ["none", "nano", "0", 0, False, 0.0, "Nancy", "NAN", "-", ["x"], {"x": 1}, b"x"]
)
def test_what_is_a_value(value):
    assert not cells.is_empty(value)


def test_empty_labels_are_no_class(tmp_path):
    """Chance is one in three, and not one in four or more."""
    for i in range(24):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    labels = [("cat", "dog", "fox", "", "nan", " cat ")[i % 6] for i in range(24)]
    lines = [f"{i}.png,{label},{'test' if i >= 12 else 'train'}" for i, label in enumerate(labels)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *lines]))
    source = Table(str(tmp_path / "t.csv"))
    found = labels_of(EvaluationData(("a", "b"), source, None), "label", "a")
    assert found.classes == ["cat", "dog", "fox"] and (found.train >= 0).sum() == 8
    assert (
        found.unused("label") == "4 of 12 train records have no 'label'; 4 of 12 test records have no 'label'"
    )


# ---- what probes say of records without a part in them ----


def test_classes_that_training_lacks_are_named():
    probe = build("probe", {"name": "knn"})
    of = data(["cat", "dog", "dog"], ["cat", "CAT", "CAT", "fox", None])
    assert probe.unused(of) == (
        "3 of 5 test records have a class that training lacks: CAT (2), fox (1);"
        " 1 of 5 test records have no 'label'"
    )
    assert probe.unused(data(["cat", "dog"], ["cat", " dog "])) is None
    assert probe.misses(of) is None
    assert probe.misses(data(["cat", "dog"], [None, "fox"])) == (
        "it needs two classes or more, and test samples of them, in 'label' of the records; found 2 classes."
        " 1 of 2 test records have a class that training lacks: fox (1); 1 of 2 test records have no 'label'."
    )
    many = data(["cat", "dog"], ["cat", *(f"c{i}" for i in range(7)), "\x1b[31m"])
    assert probe.unused(many).endswith(": c0 (1), c1 (1), c2 (1), c3 (1), c4 (1) and 3 more")


def test_numbers_and_couples_that_are_missing_are_counted():
    assert Regression().unused(data([1, None, "nan"], [2, 3])) == "2 of 3 train records have no 'label'"
    assert Regression().unused(data([1, 2], [2, 3])) is None
    assert PairMatch().unused(data([], [1, "0", None])) == "1 of 3 test records have no 'label'"
