"""The plan of a run on many processes: what one of them holds and receives, from one process alone."""

import json
from collections import Counter

import pytest
import torch
from tiny import branch, recipe
from torch import nn

from benchmarks.plan import real_run
from vicjoint import distributed
from vicjoint.objectives import VICReg, forms
from vicjoint.recipe import load_recipe
from vicjoint.run import main
from vicjoint.training import plan, plan_text
from vicjoint.training.ledger import Ledger, size_of

CPU = torch.device("cpu")


def wide(**changes) -> dict:
    """As the tiny recipe, with enough weights to be seen."""
    return recipe(a=branch(expander=[256, 256]), b=branch(expander=[256, 256]), **changes)


def deep(**changes) -> dict:
    """With activations that are larger than all else."""
    return recipe(a=branch(expander=[1024, 32]), b=branch(expander=[1024, 32]), **changes)


def of(written: dict, processes: int, **overrides) -> list[plan.Share]:
    changes = [f"{key}={value}" for key, value in overrides.items()]
    return plan.plan(load_recipe(written, changes), processes)[1]


# ---- the ledger ----


def test_a_ledger_counts_what_is_there_at_once():
    model = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 100))
    x = torch.randn(200, 100)
    unit = x.nbytes
    with Ledger(CPU) as ledger:
        assert ledger.held == 0
        with torch.no_grad():
            y = model(x)
            assert ledger.held == unit  # what comes out of ReLU is gone
            del y
        x.mul_(2)
        x.view(-1)
        assert ledger.held == 0, "nothing new"
        z = model(x)
        assert ledger.held == 2 * unit and len(z) == 200  # y, and what ReLU keeps for its backward pass
    assert ledger.peak == 2 * unit and not ledger.received
    assert ledger.operations == 2 * 2 * 2 * 200 * 100 * 100


def test_tensors_of_one_storage_count_once():
    weight = nn.Parameter(torch.zeros(10, 10))
    assert size_of([weight, weight, weight.data, None, 3]) == 400 and size_of([]) == 0


@pytest.mark.parametrize(
    "exchange, expected",
    [
        (lambda: distributed.total(torch.zeros(100)), {"all_reduce": 2 * 7 / 8 * 400}),
        (lambda: distributed.total_later(torch.zeros(100))(), {"all_reduce": 2 * 7 / 8 * 400}),
        (lambda: distributed.gather(torch.zeros(5, 10), [5] * 8), {"all_gather": 7 * 200}),
        (lambda: distributed.row_counts(5), {"all_gather": 7 * 8}),
        (lambda: distributed.to_columns(torch.zeros(5, 16), [5] * 8), {"all_to_all": 7 * 5 * 2 * 4}),
        (lambda: distributed.to_rows(torch.zeros(40, 2), [5] * 8, 16), {"all_to_all": 7 * 5 * 2 * 4}),
        (lambda: distributed.same_as_first([torch.zeros(100)]), {"broadcast": 7 / 8 * 400}),
        (lambda: distributed.anywhere(True, False), {"all_reduce": 2 * 7 / 8 * 2}),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_received_bytes_of_each_exchange(exchange, expected):
    with distributed.pretended(8):
        assert (distributed.world_size(), distributed.rank()) == (8, 7)
        with Ledger(CPU) as ledger:
            exchange()
    assert ledger.received == expected and distributed.world_size() == 1


# ---- the objective's form ----


@pytest.mark.parametrize("form", ["rows", "columns", "covariance"])
@pytest.mark.parametrize("statistics, shares", [("global", 1), ("both", 2)])
def test_a_form_receives_what_its_formula_says(monkeypatch, form, statistics, shares):
    from vicjoint.objectives import vicreg

    monkeypatch.setattr(vicreg, "best_form", lambda *_: form)
    objective, world, n, dim = VICReg(statistics=statistics), 8, 16, 64
    objective.guard.LEAST = -float("inf")
    z_a, z_b = (torch.randn(n, dim, requires_grad=True) for _ in "ab")
    with distributed.pretended(world), Ledger(CPU) as ledger:
        objective(z_a, z_b, torch.arange(n) // 2)[0].backward()
    said = next(f for f in forms.forms(n * world, dim, world, 4, shares) if f.name == form)
    # beside it: counts of rows, groups, means within groups, and sums of one number each
    assert said.received <= ledger.received.total() < 1.1 * said.received + 2000
    assert said.operations <= ledger.operations <= (1 if shares == 1 else 1.3) * said.operations


def test_the_cheapest_form():
    best = forms.best_form
    assert [best(256, dim, 1) for dim in (128, 256, 257)] == ["covariance", "covariance", "rows"]
    # the published setting: columns where the link is the limit, rows for half precision and few processes
    assert [best(2048, 8192, world) for world in (2, 4, 8, 256)] == ["rows", "rows", "columns", "columns"]
    assert best(2048, 8192, 256, size=2) == "rows"
    assert [best(rows, 1024, 32) for rows in (512, 1024, 1500, 8192)] == ["rows"] * 3 + ["covariance"]
    assert best(64, 2048, 8) == "rows", "few bytes: not worth three exchanges"
    for rows, dim, world in [(64, 512, 2), (4096, 512, 64), (1024, 8192, 512)]:
        found = {form.name: form for form in forms.forms(rows, dim, world)}
        assert found[best(rows, dim, world)].cost == min(form.cost for form in found.values())


# ---- the plan ----


def test_the_parts_of_a_step():
    (share,) = of(wide(), 4)
    parameters = 2 * (6 * 16 + 16 + 2 * 16 + 16 * 8 + 8 + 8 * 256 + 256 + 2 * 256 + 256 * 256)
    buffers = 2 * (2 * 16 + 2 * 256) * 4 + 4 * 8
    assert share.samples == 2 and share.gradients == 4 * parameters
    assert share.static["weights and buffers"] == 4 * parameters + 2 * buffers
    assert share.static["the model before its first step"] == 4 * parameters + buffers
    assert share.static["optimizer"] == pytest.approx(2 * 4 * parameters, rel=0.001)  # and its steps
    assert share.static["gradients on their way"] == 4 * parameters
    assert share.static["batch"] == 2 * 2 * 6 * 4 + 2 * 8
    received = share.received
    assert received["gradients", "all_reduce"] == 1.5 * 4 * parameters
    assert received["buffers", "broadcast"] == 0.75 * buffers
    assert received["batch norm", "all_gather"] == 3 * 3 * 8 * 2 * (16 + 256)  # count, mean, variance
    assert received["batch norm", "all_reduce"] == 1.5 * 2 * 4 * 2 * (16 + 256)
    rows = next(form for form in forms.forms(8, 256, 4) if form.name == "rows")
    assert received["objective", "all_gather"] == rows.received + 3 * 8
    assert received["checks", "all_reduce"] == 1.5 * (2 + 4)
    # forward, and two products of the backward pass, of two samples; the first layer has no one to tell
    assert share.operations == pytest.approx(
        2 * 2 * 2 * (3 * (16 * 8 + 8 * 256 + 256 * 256) + 2 * 6 * 16) + rows.operations
    )
    assert sum(share.static.values()) + share.gradients < share.peak < 9 * 4 * parameters
    assert share.seconds > 0 and share.reading > 0 and distributed.world_size() == 1


def test_one_process_has_no_traffic():
    (share,) = of(wide(), 1)
    assert share.samples == 8 and not share.received.total() and not share.static["gradients on their way"]


def test_a_large_share_is_measured_on_smaller_ones(monkeypatch):
    written = wide(train={"steps": 2, "batch_size": 256})
    (whole,) = of(written, 2, **{"train.sync_batch_norm": "false"})
    assert whole.samples == 128
    monkeypatch.setattr(plan, "MEASURED", 128)
    (measured,) = of(written, 2, **{"train.sync_batch_norm": "false"})
    for name in ("activations", "waiting", "operations", "peak"):
        assert getattr(whole, name) == pytest.approx(getattr(measured, name), rel=0.02), name
    assert whole.received == measured.received and whole.objective == measured.objective


def test_parts_of_a_batch_take_less_at_once():
    written = wide(train={"steps": 2, "batch_size": 128})
    (whole,) = of(written, 2)
    (exact,) = of(written, 2, **{"train.accumulate": 4})
    (apart,) = of(written, 2, **{"train.accumulate": 4, "train.exact": "false"})
    assert whole.samples == exact.samples == apart.samples == 64
    assert apart.activations < 0.5 * whole.activations and exact.activations < whole.activations
    # the objective sees all samples, or four times a part
    assert exact.objective == whole.objective > 2 * apart.objective
    assert exact.received["objective", "all_gather"] == whole.received["objective", "all_gather"]
    assert apart.received["objective", "all_gather"] == whole.received["objective", "all_gather"] + 3 * 8
    assert exact.operations > 1.2 * whole.operations


def test_what_leaves_a_node():
    share = plan.Share("", 1, received=Counter({("gradients", "all_reduce"): 100.0}))
    assert plan.out_of_a_node(share, 8, 8) == 0 and plan.out_of_a_node(share, 16, 8) == 100
    share.received["objective", "all_to_all"] = 15.0  # one to each of the others; of 8, 8 to the other node
    assert plan.out_of_a_node(share, 16, 8) == 100 + 64


@pytest.mark.parametrize(
    "objective", ["barlow_twins", "infonce", "{name: infonce, form: nt_xent, learnable: true}"]
)
def test_any_objective(objective):
    name = objective if objective.startswith("{") else f"{{name: {objective}}}"
    (share,) = of(wide(), 4, objective=name)
    assert share.received["objective", "all_gather"] > 3 * 2 * 2 * 256 * 4


# ---- the command ----


def command(tmp_path, *arguments: str, written=None) -> int:
    (tmp_path / "recipe.yaml").write_text(json.dumps(written or wide()))
    return main([str(tmp_path / "recipe.yaml"), "--dry-run", *arguments])


def test_the_command(tmp_path, capsys):
    assert command(tmp_path, "--processes", "4", "--per-node", "2", "--gpu", "h100") == 0
    said = capsys.readouterr().out
    assert "name: tiny" in said and "branch a: encoder" in said and "30 rows of numbers" in said
    assert "plan for 4 processes on 2 nodes of 2; the largest share of a batch is 2 of 8 samples" in said
    assert "samples: 30 records x 1 = 30 an epoch; steps: 14 of 8" in said
    for row in ("weights and buffers", "gradients: all_reduce", "out of a node", "most at once"):
        assert f"\n  {row}  " in said, row
    assert "measured here, on a CPU: another machine takes another time" in said
    assert "of the 79.1 GiB of h100" in said and not (tmp_path / "runs").exists()


def test_every_task_has_a_column(tmp_path, capsys):
    two = {"a": "a", "b": "b", "pair": {"name": "tiny_views"}}
    written = recipe(
        branches={"a": branch(), "b": branch(expander=[16, 12])}, pairs=[two, {**two, "weight": 2}]
    )
    for key in ("a", "b", "pair"):
        del written[key]
    (tmp_path / "recipe.yaml").write_text(json.dumps(written))
    assert main([str(tmp_path / "recipe.yaml"), "--dry-run", "--processes", "2"]) == 0
    said = capsys.readouterr().out
    assert "a-b-2: samples: 30 records" in said
    assert next(line for line in said.splitlines() if line.endswith("a-b-2")).split() == ["a-b", "a-b-2"]
    assert len(next(line for line in said.splitlines() if "seconds to train" in line).split()) == 5


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--processes", "0"], "--processes: 0 is out of range. Expected 1 or more."),
        (["--processes", "2", "--per-node", "-1"], "--per-node: -1 is out of range."),
        (["--per-node", "8"], "--per-node: how many processes there are is not said. Add --processes N."),
        (["--gpu", "h10"], "--gpu: no 'h10'. Did you mean 'h100'? Expected one of a100, a100-40,"),
        (
            ["--processes", "16"],
            "train.batch_size: 8 samples cannot be made of records with 1 samples each on 16",
        ),
        (
            ["--processes", "4", "train.accumulate=3"],
            "train.accumulate: 2 records a batch cannot be cut into 3",
        ),
        (
            ["--processes", "8", "train.sync_batch_norm=false"],
            "train.batch_size: 8 samples leave one at a time to each of 8 processes",
        ),
    ],
    ids=str,
)
def test_mistakes(tmp_path, capsys, arguments, expected):
    assert command(tmp_path, *arguments) == 2
    assert expected in capsys.readouterr().err and distributed.world_size() == 1


def test_a_plan_is_not_a_run(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe()))
    assert main([str(tmp_path / "recipe.yaml"), "--processes", "4"]) == 2
    assert "--processes, --gpu: these are of a plan. Add --dry-run" in capsys.readouterr().err


def test_what_does_not_fit(tmp_path, capsys, monkeypatch):
    train = {"steps": 2, "batch_size": 256}
    written = deep(train=train)
    (share,) = of(written, 2)
    room = share.peak - share.activations / 2
    monkeypatch.setitem(plan_text.GPUS, "h100", plan_text.Gpu(room / 2**30, 1))
    assert command(tmp_path, "--processes", "2", "--gpu", "h100", written=written) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("does not fit: activations ")
    pieces = int(said.removesuffix(".").rpartition("raise train.accumulate to ")[2])
    (parts,) = of(written, 2, **{"train.accumulate": pieces})
    assert pieces > 1 and parts.peak < room
    monkeypatch.setitem(plan_text.GPUS, "h100", plan_text.Gpu(sum(share.static.values()) / 2**30, 1))
    assert command(tmp_path, "--processes", "2", "--gpu", "h100", written=written) == 0
    assert "no train.accumulate makes it fit. Take more processes" in capsys.readouterr().out


def test_a_real_run_holds_what_was_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, plan_paths())))
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path))
    written = recipe(
        **{side: branch(expander=[512, 512]) for side in "ab"}, train={"steps": 9, "batch_size": 64}
    )
    (tmp_path / "recipe.yaml").write_text(json.dumps(written))
    (share,) = of(written, 2)
    real = real_run(str(tmp_path / "recipe.yaml"), [], 2)
    # what else is held for a moment depends on when the system lets a process go on
    assert 0.9 * share.peak < real["memory, MiB"] < 1.3 * share.peak
    # others use the interface, too
    assert real["traffic, MiB"] > 0.95 * share.received.total()


def plan_paths():
    from tiny import TESTS

    return TESTS, TESTS.parent
