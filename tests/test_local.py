"""VICRegL: cells of two maps, matched by place and by embedding, beside VICReg of the whole views."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchrun import torchrun

import vicjoint
from vicjoint.accumulate import backward
from vicjoint.batch import Boxed, WithCells, concatenate
from vicjoint.model import Branch
from vicjoint.objectives import VICReg, VICRegL
from vicjoint.objectives.vicregl import nearest
from vicjoint.pairs.augment import Augment
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import Modality
from vicjoint.registry import build
from vicjoint.run import main
from vicjoint.tokens import TokenEncoder, Tokens, tokens_of, y_and_map_of
from vicjoint.training import loop
from vicjoint.training.build import build_parts
from vicjoint.training.checkpoint import load_last
from vicjoint.transforms.images import Geometry

TERMS = [f"{local}{term}" for local in ("", "local_") for term in ("invariance", "variance", "covariance")]


# ---- the reference: slot by slot, pair by pair, autograd and no more ----


def vicreg_of_slots(x, y, weights):
    """[invariance, variance, covariance] of lists of matched cells [N, M, L], as VICRegL's code states it."""
    N, M, L = x.shape
    found = [((x - y) ** 2).mean(), 0.0, 0.0]
    for slot in range(M):
        for z in (x[:, slot], y[:, slot]):
            found[1] = found[1] + torch.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean() / 2 / M
            off = torch.cov(z.T) * (1 - torch.eye(L, dtype=z.dtype))
            found[2] = found[2] + (off**2).sum() / L / 2 / M
    return [w * term for w, term in zip(weights, found)]


def matched(one, other, by_one, by_other, most):
    """Lists of cells [N, M, L]."""
    x, y = [], []
    for n in range(len(one)):
        best = []
        for i, p in enumerate(by_one[n].tolist()):
            far = [sum((s - t) ** 2 for s, t in zip(p, q)) for q in by_other[n].tolist()]
            best.append((min(far), i, far.index(min(far))))
        kept = sorted(sorted(best)[:most], key=lambda found: found[1])
        x.append(torch.stack([one[n, i] for _, i, _ in kept]))
        y.append(torch.stack([other[n, j] for _, _, j in kept]))
    return torch.stack(x), torch.stack(y)


def reference(a, b, alpha, weights, matches, feature_matches):
    whole = vicreg_of_slots(a.z[:, None], b.z[:, None], weights)
    local = [0.0, 0.0, 0.0]
    for one, other in ((a, b), (b, a)):
        for by_one, by_other, most in (
            (one.places, other.places, matches),
            (one.cells.detach(), other.cells.detach(), feature_matches),
        ):
            x, y = matched(one.cells, other.cells, by_one, by_other, most)
            local = [old + new / 2 for old, new in zip(local, vicreg_of_slots(x, y, weights))]
    found = [alpha * term for term in whole] + [(1 - alpha) * term for term in local]
    return sum(found), dict(zip(TERMS, found))


def views(samples=6, grids=((3, 4), (2, 3)), width=5, dtype=torch.float64, seed=0):
    """Embeddings of two views [N, 7] with maps of different grids, of random boxes, one side mirrored."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=dtype)
    made = []
    for grid in grids:
        corner, side = 20 * draw(samples, 2).abs(), 30 + 10 * draw(samples, 2).abs()
        boxes = torch.cat([corner, corner + side], 1)
        boxes[::2] = boxes[::2][:, [2, 1, 0, 3]]
        cells = 0.4 * draw(samples, grid[0] * grid[1], width)
        made.append(WithCells(0.5 * draw(samples, 7), cells, Boxed(None, boxes).places(grid)))
    return made


@pytest.mark.parametrize("feature_matches", [None, 3])
@pytest.mark.parametrize("alpha", [0.75, 0.0, 1.0])
def test_value_terms_and_gradients_are_the_references(alpha, feature_matches):
    leaves, of_ours, of_reference = [*views()], [], []
    for gradients, call in (
        (of_ours, VICRegL(alpha, 25.0, 20.0, 3.0, 4, feature_matches, [5])),
        (of_reference, lambda a, b: reference(a, b, alpha, (25.0, 20.0, 3.0), 4, feature_matches)),
    ):
        a, b = (
            v._replace(z=v.z.clone().requires_grad_(), cells=v.cells.clone().requires_grad_()) for v in leaves
        )
        loss, terms = call(a, b)
        loss.backward()
        gradients += [float(loss.detach()), {name: float(value.detach()) for name, value in terms.items()}]
        gradients += [torch.zeros(()) if x.grad is None else x.grad for x in (a.z, b.z, a.cells, b.cells)]
    assert of_ours[0] == pytest.approx(of_reference[0], rel=1e-12)
    assert list(of_ours[1]) == TERMS == list(VICRegL.terms)
    assert of_ours[1] == pytest.approx(of_reference[1], rel=1e-12)
    assert sum(of_ours[1].values()) == pytest.approx(of_ours[0], rel=1e-12)
    for got, expected in zip(of_ours[2:], of_reference[2:]):
        torch.testing.assert_close(got, expected.expand_as(got), rtol=1e-10, atol=1e-14)


def test_the_whole_term_is_vicreg_in_vicregls_convention():
    a, b = views()
    expected, terms = VICReg(convention="vicregl")(a.z, b.z)
    found = VICRegL(alpha=0.5)(a, b)[1]
    assert {name: float(found[name]) for name in terms} == pytest.approx(
        {name: float(value) / 2 for name, value in terms.items()}
    )


def test_half_precision_and_a_branch_without_gradient():
    a, b = (WithCells(v.z.bfloat16(), v.cells.bfloat16(), v.places.float()) for v in views())
    a.cells.requires_grad_()
    loss, _ = VICRegL()(a, b)
    wide = [WithCells(v.z.double(), v.cells.detach().double(), v.places.double()) for v in (a, b)]
    assert float(loss.detach()) == pytest.approx(float(VICRegL()(*wide)[0]), rel=1e-5)
    loss.backward()
    assert a.cells.grad.dtype == torch.bfloat16 and b.cells.grad is None


# ---- known answers of matching ----


def places(box, grid):
    return Boxed(None, torch.tensor([box], dtype=torch.float64)).places(grid)


def test_middles_of_cells_lie_where_the_box_says():
    assert places((10, 0, 30, 40), (2, 2)).tolist() == [[[15, 10], [25, 10], [15, 30], [25, 30]]]
    assert places((30, 0, 10, 40), (1, 2)).tolist() == [[[25, 20], [15, 20]]]  # mirrored


def test_equal_crops_match_each_cell_with_itself_and_mirrored_ones_with_its_mirror_image():
    one, mirrored = places((3, 5, 77, 51), (3, 4)), places((77, 5, 3, 51), (3, 4))
    own, theirs = nearest(one, one)
    assert own[0].tolist() == theirs[0].tolist() == list(range(12))
    own, theirs = nearest(one, mirrored)
    assert theirs[0].tolist() == [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8]


def test_boxes_beside_each_other_keep_the_cells_at_their_common_edge():
    left, right = places((0, 0, 40, 40), (2, 4)), places((50, 0, 90, 40), (2, 4))
    own, theirs = nearest(left, right, 2)
    assert own.tolist() == [[3, 7]] and theirs.tolist() == [[0, 4]]
    own, theirs = nearest(left, right, 4)
    assert own.tolist() == [[2, 3, 6, 7]] and theirs.tolist() == [[0, 0, 4, 4]]


def test_the_same_view_twice_costs_no_invariance():
    (a, _), objective = views(), VICRegL(alpha=0.0)
    assert float(objective(a, a)[1]["local_invariance"]) == 0
    # the mirrored view whose map is mirrored, too, shows the same cells elsewhere
    grid = a.cells.unflatten(1, (3, 4))
    turned = [x.unflatten(1, (3, 4)).flip(2).flatten(1, 2) for x in (grid.flatten(1, 2), a.places)]
    assert float(objective(a, WithCells(a.z, *turned))[1]["local_invariance"]) == 0


# ---- what the pair gives ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 PNGs whose red is their column and green their row, in two classes, as a class folder."""
    root = tmp_path_factory.mktemp("pictures")
    down, across = np.mgrid[:48, :60].astype(np.uint8)
    for i in range(24):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        pixels = np.stack([4 * across, 5 * down, np.full_like(down, 10 * i)], 2)
        Image.fromarray(pixels).save(root / "ab"[i % 2] / f"{i}.png")
    return root


GEOMETRY = [{"name": "random_resized_crop", "interpolation": "bilinear"}, {"name": "horizontal_flip"}]


@pytest.mark.parametrize("turned", [False, True], ids=["crop, flip", "flip, crop"])
def test_boxes_say_where_the_pixels_come_from(folder, turned):
    steps = GEOMETRY[::-1] if turned else GEOMETRY
    pair = Augment(size=32, a=steps, b=steps)
    pair.give_boxes()
    record = {"id": "0", "path": str(folder / "a" / "0.png")}
    mirrored = set()
    for seed in range(12):
        for view in pair.sample(record, np.random.default_rng(seed)):
            middle = view.view[0, :2].float().unflatten(2, (8, 4)).mean(3).unflatten(1, (8, 4)).mean(2)
            x, y = view.places((8, 8))[0].T  # a pixel's middle is half a pixel behind its number
            inner = (slice(None), slice(1, -1), slice(1, -1))  # at the edge of a picture pixels are repeated
            expected = torch.stack([4 * (x - 0.5), 5 * (y - 0.5)]).unflatten(1, (8, 8))
            assert (middle - expected)[inner].abs().max() < 1.5
            mirrored.add(bool(view.boxes[0, 0] > view.boxes[0, 2]))
    assert mirrored == {False, True}


@pytest.mark.parametrize("colour", ["worker", "device"])
def test_views_are_the_same_with_boxes(folder, colour):
    record = {"id": "0", "path": str(folder / "a" / "0.png")}
    plain, boxed = (Augment(size=16, colour=colour) for _ in "ab")
    boxed.give_boxes()
    given = [[pair.sample(record, np.random.default_rng(i)) for i in range(3)] for pair in (plain, boxed)]
    for without, with_boxes in zip(*(map(concatenate, map(list, zip(*samples))) for samples in given)):
        moved = with_boxes.to("cpu")
        assert len(moved) == 3 and moved.boxes.shape == (3, 4)
        assert torch.equal(without.to("cpu"), moved.view)
        assert torch.equal(moved[1:].view, moved.view[1:]) and torch.equal(moved[:2].boxes, moved.boxes[:2])


# ---- y and map in one pass ----


@pytest.mark.parametrize(
    "name, options, size",
    [
        ("conv", {"width": 4, "dim": 16}, 32),
        ("pooled_conv", {"widths": [4, 8], "strides": [2, 2]}, 20),
        ("resnet18", {"stem": "small"}, 16),
        ("mobilenet_v2", {}, 64),
        ("timm", {"model": "test_vit"}, 160),
        ("transformers", {"model": "resnet", "config": {"depths": [1, 1], "hidden_sizes": [8, 12]}}, 64),
    ],
)
def test_one_pass_gives_what_two_give(name, options, size):
    if name in ("timm", "transformers"):
        pytest.importorskip(name)
    encoder = build("encoder", {"name": f"image/{name}", **options}).eval()
    view = torch.randn(2, 3, size, size)
    with torch.no_grad():
        y, cells, grid = y_and_map_of(encoder, view)
        tokens = tokens_of(encoder, view)
        torch.testing.assert_close(y, encoder(view))
    assert tokens.grid == grid and cells.shape == (2, grid[0] * grid[1], encoder.token_dim)
    assert torch.equal(cells, tokens.x[:, tokens.x.shape[1] - cells.shape[1] :])


class Places(TokenEncoder, nn.Module):
    """One that says no more than its tokens: two passes."""

    dim = 3
    grid: tuple | None = (4, 4)

    def forward_tokens(self, view):
        return Tokens(view.flatten(2).transpose(1, 2), grid=self.grid)

    def forward(self, view):
        return view.mean((2, 3))


def test_an_encoder_that_says_no_more_than_tokens_takes_two_passes():
    view = torch.randn(2, 3, 4, 4)
    y, cells, grid = y_and_map_of(Places(), view)
    assert torch.equal(y, view.mean((2, 3))) and torch.equal(cells, view.flatten(2).transpose(1, 2))
    assert grid == (4, 4)


# ---- runs ----


def recipe(folder, **changes):
    return {
        "name": "small",
        "source": {"name": "image_folder", "root": str(folder), "test_fraction": 0.3},
        "pair": {"name": "augment", "size": 16},
        "a": {
            "modality": "image",
            "encoder": {"name": "pooled_conv", "widths": [4, 8], "strides": [2, 2]},
            "expander": [16, 12],
        },
        "b": {"weights": "same"},
        "objective": {"name": "vicregl", "matches": 6, "expander": [10, 8]},
        "optim": {"name": "adamw", "lr": 1e-2, "schedule": {"name": "constant"}},
        "train": {"steps": 4, "batch_size": 8},
        "data": {"workers": 0},
        "checkpoint": {"every": 2},
        "evaluate": {"explorer": 0},
        **changes,
    }


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(loop, "write_report", lambda folder: folder / "report.html")


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluate.probes=[{name: knn, k: [3]}]", "pair.colour=device"],
        ["b.weights=ema", "predictor={name: mlp, hidden: 8}"],
        ["b={modality: image, encoder: {name: conv, width: 4, dim: 8}, expander: [12], weights: own}"],
        ["a.train=expander", "train.accumulate=2"],
        ["train.precision=bf16", "train.checkpoint_activations=true"],
    ],
    ids=["same", "ema", "own", "expander", "bf16"],
)
def test_a_run(folder, tmp_path, overrides, quick):
    run = vicjoint.train(recipe(folder), [f"out={tmp_path / 'run'}", *overrides])
    steps = lines(run)
    assert len(steps) == 4 and all(np.isfinite(step["loss"]) for step in steps)
    assert all(step["loss"] == pytest.approx(sum(step[t] for t in TERMS), rel=1e-4) for step in steps)
    before = build_parts(loop.load_recipe(recipe(folder), [f"out={tmp_path / 'run'}", *overrides])).untrained
    moved = load_last(run / "checkpoints")["model"]
    for name, tensor in before.state_dict().items():
        if "local_expander" in name and name.endswith("weight"):
            assert not torch.equal(tensor, moved[name]), name
    y = vicjoint.load_encoder(run, "a")(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert y.shape == (1, 32)


def test_a_run_that_was_cut_goes_on_as_it_would_have(folder, tmp_path, quick):
    whole = vicjoint.train(recipe(folder), [f"out={tmp_path / 'whole'}"])
    cut = [f"out={tmp_path / 'cut'}", "checkpoint.may_change=[length]"]
    vicjoint.train(recipe(folder), [*cut, "train.steps=2"])
    vicjoint.train(recipe(folder), cut)
    assert [step["loss"] for step in lines(tmp_path / "cut")] == [step["loss"] for step in lines(whole)]


def test_parts_give_the_gradient_of_the_whole_batch(folder):
    """Batch norm would see parts."""
    parts = build_parts(loop.load_recipe(recipe(folder)))
    parts.model.eval()
    batch, _ = next(parts.batches_of(parts.tasks[0], 1))
    found = []
    for accumulate in (1, 4):
        options = parts.recipe.train.model_copy(update={"accumulate": accumulate})
        parts.model.zero_grad()
        loss, terms, z = backward(parts.model, parts.tasks[0].objective, batch, options)
        assert [x.shape for x in z] == [(8, 12)] * 2
        found.append([loss, *terms.values(), *(p.grad for p in parts.model.parameters())])
    for of_whole, of_parts in zip(*found):
        torch.testing.assert_close(of_parts, of_whole, rtol=1e-4, atol=1e-5 * float(of_whole.abs().max()))


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import vicjoint
from vicjoint import distributed
from vicjoint.batch import WithCells
from vicjoint.objectives import VICRegL
from vicjoint.training import loop, parallel
from test_local import views

ROWS = [6, 4]
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.of_z, self.of_cells = nn.Linear(7, 9).double(), nn.Linear(5, 6).double()
    def forward(self, a, b):
        return [WithCells(self.of_z(v.z), self.of_cells(v.cells), v.places) for v in (a, b)]

def run(rows, wrap):
    net = Net()
    called = wrap(net)  # held until the backward pass
    given = [WithCells(*(x[rows] for x in view)) for view in views(10)]
    loss, terms = VICRegL(0.6, matches=4, feature_matches=5)(*called(*given))
    loss.backward()
    return [loss.detach(), *terms.values(), *(p.grad for p in net.parameters())]

alone = run(slice(0, 10), lambda net: net)
distributed.start()
stop, distributed.stop = distributed.stop, lambda: None  # several runs of the same processes
shared = run(distributed.own_rows(ROWS), DistributedDataParallel)
largest = max(float(expected.abs().max()) for expected in alone[7:])
for number, (got, expected) in enumerate(zip(shared, alone)):
    size = float(expected.abs()) if number < 7 else largest
    assert float((got - expected).abs().max()) <= 1e-12 * size, (number, got, expected)

loop.write_report = lambda folder: folder / "report.html"
parallel.LEAST = 1
for how in ("ddp", "fsdp"):
    vicjoint.train(json.loads(Path("recipe.json").read_text()), [f"out={how}", f"train.parallel={how}"])
stop()
"""


def test_two_processes_are_one(folder, tmp_path, quick):
    """Loss, terms and gradients of uneven rows; then whole runs, of weights that each process has and of
    shares of them."""
    written = recipe(folder, b={**recipe(folder)["a"], "weights": "own"})
    (tmp_path / "recipe.json").write_text(json.dumps(written))
    (tmp_path / "two.py").write_text(SCRIPT)
    one = vicjoint.train(written, [f"out={tmp_path / 'one'}"])
    torchrun(tmp_path, 2, "two.py", path=[Path(__file__).parent])
    expected = [step["loss"] for step in lines(one)]
    for how in ("ddp", "fsdp"):
        assert [step["loss"] for step in lines(tmp_path / how)] == pytest.approx(expected, rel=1e-4), how


# ---- messages ----


class Turned(Geometry):
    def __init__(self, size: int, /):
        pass

    def __call__(self, pixels, rng):
        return pixels


def test_what_does_not_fit_is_said_in_one_message():
    for pair, message in (
        (
            Augment(views={"global": 2, "local": 3}),
            "pair.views: 3 further crops on branch a, and the objective",
        ),
        (NextFrame(), "pair 'NextFrame' gives no two views of one picture that say where they look"),
    ):
        with pytest.raises(ValueError, match=message):
            VICRegL().bind(pair)
    pair = Augment()
    pair.b.geometry.append(Turned(8))
    with pytest.raises(ValueError, match="pair.b: transform Turned does not say where its view looks"):
        VICRegL().bind(pair)
    with pytest.raises(ValueError, match=r"vicregl needs embeddings of the cells of a map .*, got Tensor"):
        VICRegL()(torch.ones(4, 3), torch.ones(4, 3))
    a, b = views(width=5)
    with pytest.raises(ValueError, match=r"cells of one width .* got \[6, 12, 5\] and \[6, 6, 4\]"):
        VICRegL()(a, b._replace(cells=b.cells[..., :4]))
    with pytest.raises(ValueError, match="at least 2 samples"):
        VICRegL()(*(WithCells(*(x[:1] for x in view)) for view in (a, b)))


class Pooled(nn.Module):
    dim = 3

    def forward(self, view):
        return view.mean((2, 3))


def test_encoders_without_a_map_are_refused():
    with pytest.raises(ValueError, match="encoder Pooled gives y and no tokens"):
        Branch(Modality(), Pooled(), [4], local_expander=[4])
    encoder, view = Places(), Boxed(torch.randn(2, 3, 4, 4), torch.zeros(2, 4))
    branch = Branch(Modality(), encoder, [4], local_expander=[4])
    assert branch(view).cells.shape == (2, 16, 4)
    for grid, said in ((None, "no grid"), ((16,), r"\[16\]")):
        encoder.grid = grid
        with pytest.raises(ValueError, match=f"encoder Places gives tokens on {said}. Comparing the cells"):
            branch(view)
    encoder.grid = (4, 4)
    with pytest.raises(ValueError, match="encoder Places: its map has 5 channels, expected 3, its token_dim"):
        branch(Boxed(torch.randn(2, 5, 4, 4), view.boxes))
    with pytest.raises(ValueError, match="this branch has no expander for cells"):
        Branch(Modality(), encoder, [4])(view)


def test_the_command_says_what_does_not_fit(folder, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("file,text\n" + "".join(f"{p},one\n" for p in sorted(folder.rglob("*.png"))))
    written = recipe(folder)
    two = {
        "source": {"name": "table", "root": str(table)},
        "pair": {"name": "cross_modal", "a": "file", "b": "text"},
        "b": {"modality": "text", "encoder": {"name": "words"}, "expander": [12]},
    }
    several = {"branches": {"one": written["a"]}, "pairs": []}
    for widths in ([10, 8], [10, 4]):
        objective = {**written["objective"], "expander": widths}
        several["pairs"] += [{"a": "one", "b": "one", "pair": written["pair"], "objective": objective}]
    several |= {key: written[key] for key in ("name", "source", "optim", "train", "data")}
    for number, (changed, message) in enumerate(
        (
            (
                {"pair": {**written["pair"], "views": {"global": 2, "local": 2}}},
                "pair.views: 2 further crops",
            ),
            (two, "pair 'CrossModal' gives no two views of one picture that say where they look"),
            (
                {"objective": {"name": "vicregl", "matches": 0}},
                "objective.matches: expected a number at least 1",
            ),
            (None, "pairs.1.objective.expander: [10, 4], but another pair of branch 'one' has [10, 8]"),
        )
    ):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(several if changed is None else {**written, **changed}))
        assert main([str(file), f"out={tmp_path / 'none'}"]) == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said, said


def test_a_pair_of_whole_views_beside_one_of_cells(folder, tmp_path, quick):
    """Of one branch: in the second pair's steps the expander of cells has no part."""
    written = recipe(folder)
    several = {"branches": {"one": written["a"]}, "pairs": []}
    for objective in (written["objective"], {"name": "vicreg"}):
        several["pairs"] += [{"a": "one", "b": "one", "pair": written["pair"], "objective": objective}]
    several |= {key: value for key, value in written.items() if key not in ("a", "b", "pair", "objective")}
    first, second, *_ = lines(vicjoint.train(several, [f"out={tmp_path / 'run'}"]))
    assert "local_invariance" in first and "local_invariance" not in second
