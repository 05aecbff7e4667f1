"""gloo processes with different data and different row counts: the loss and the gradients of one process with
the union."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = '''
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from vicjoint import distributed
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.objectives import BarlowTwins, InfoNCE, InfoNCEDistance, SIGReg, Straightened, VICReg, forms

WORLD = int(sys.argv[1])
ROWS = {2: [6, 4], 4: [3, 1, 4, 2]}[WORLD]  # uneven
GROUP = torch.tensor([0, 0, 0, 1, 1, 1, 0, 2, 2, 2])  # one of them on several processes
N = sum(ROWS)
# name -> (objective, embedding width, whether branch b has a gradient, what its embeddings are multiplied by)
heavy = torch.ones(64); heavy[3] = 1e4
forms.EXCHANGE = 0  # of so few rows, or gathering them would always be cheapest
CASES = {
    "rows": (lambda: VICReg(), 16, True, None),
    "rows, no more dimensions than samples": (lambda: VICReg(), 8, True, None),
    "covariance": (lambda: VICReg(), 3, True, None),
    "columns": (lambda: VICReg(), 64, True, None),
    "columns that need the exact form": (lambda: VICReg(), 64, True, heavy),
    "both, rows": (lambda: VICReg(statistics="both", within_share=0.7), 16, True, None),
    "both, covariance": (lambda: VICReg(statistics="both"), 3, True, None),
    "within, columns": (lambda: VICReg(statistics="within", variance={"a": 25, "b": 5}), 66, True, None),
    "pulls of its own, rows": (lambda: VICReg(invariance={"a": 25, "b": 4}), 16, True, None),
    "pulls of its own, covariance": (lambda: VICReg(invariance={"a": 0, "b": 9}), 3, True, None),
    "pulls of its own, columns": (lambda: VICReg(invariance={"a": 25, "b": 0}), 64, True, None),
    "barlow, rows": (lambda: BarlowTwins(), 16, True, None),
    "barlow, correlation": (lambda: BarlowTwins(), 6, True, None),
    "clip": (lambda: InfoNCE(0.2), 16, True, None),
    "clip, learnt": (lambda: InfoNCE(0.05, learnable=True), 16, True, None),
    "clip, ema": (lambda: InfoNCE(0.2), 16, False, None),
    "nt_xent": (lambda: InfoNCE(0.2, form="nt_xent"), 16, True, None),
    "nt_xent, learnt": (lambda: InfoNCE(0.2, learnable=True, form="nt_xent"), 16, True, None),
    "clip, negatives of one group": (lambda: InfoNCE(0.2, negatives="group"), 16, True, None),
    "clip, group, ema": (lambda: InfoNCE(0.2, negatives="group"), 16, False, None),
    "nt_xent, group": (lambda: InfoNCE(0.2, form="nt_xent", negatives="group"), 16, True, None),
    "infonce_distance": (lambda: InfoNCEDistance(), 16, True, None),
    "infonce_distance, ema": (lambda: InfoNCEDistance(), 16, False, None),
    "sigreg": (lambda: SIGReg(slices=32), 16, True, None),
    "sigreg, ema": (lambda: SIGReg(slices=32), 6, False, None),
    "straightened": (lambda: straightened(), 16, True, None),
    "moco": (lambda: InfoNCE(0.2, form="moco", queue=14), 16, False, None),
}

def straightened():
    objective = Straightened({"name": "infonce", "negatives": "group"})
    objective.bind(NextFrame(windows=3))
    return objective

def run(case, dtype, rows, wrap):
    """Two steps' losses and the second's gradients: a queue holds something then."""
    make, width, gradient_b, factor = CASES[case]
    per = 3 if case == "straightened" else 1  # samples of a record, which are on one process
    rows = slice(per * rows.start, per * rows.stop)
    group = GROUP.repeat_interleave(per)[rows]
    torch.manual_seed(0)
    objective = make()
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, width)).to(dtype)
    called = wrap(model)
    torch.manual_seed(distributed.rank())  # the first process's directions are those of all
    losses = []
    for step in range(2):
        views = torch.randn(2, per * N, 5, dtype=dtype, generator=torch.Generator().manual_seed(step))
        model.zero_grad(), objective.zero_grad()
        z_a, z_b = called(torch.cat([views[0, rows], views[1, rows]])).chunk(2)
        if factor is not None:
            z_a, z_b = z_a * factor.to(dtype), z_b * factor.to(dtype)
        loss, terms = objective(z_a, z_b if gradient_b else z_b.detach(), group)
        loss.backward()
        losses.append((loss.item(), {k: v.item() for k, v in terms.items()}))
    return losses, [p.grad.clone() for p in [*model.parameters(), *objective.parameters()]]

def compare(case, dtype, alone, shared):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for (loss, terms), (of_one, terms_of_one) in zip(shared[0], alone[0]):
        for got, expected in [(loss, of_one), *((terms[k], terms_of_one[k]) for k in terms)]:
            assert abs(got - expected) <= 5 * tolerance * max(1, abs(expected)), (case, dtype, got, expected)
    largest = max(float(g.abs().max()) for g in alone[1])
    worst = max(float((g - e).abs().max()) for g, e in zip(shared[1], alone[1])) / largest
    assert worst < tolerance, (case, dtype, worst)

cases = [(case, dtype) for case in CASES for dtype in (torch.float64, torch.float32)]
alone = [run(*case, slice(0, N), lambda model: model) for case in cases]
distributed.start()
assert distributed.world_size() == WORLD
calls = []
exchange = distributed.to_columns
distributed.to_columns = lambda *given: calls.append(1) or exchange(*given)
rows = distributed.own_rows(ROWS)
shared = [run(*case, rows, DistributedDataParallel) for case in cases]
assert bool(calls) == (WORLD == 4), "columns are exchanged where that is less traffic"
chosen = {forms.best_form(N, dim, WORLD) for dim in (3, 16, 64)}
assert chosen == {"covariance", "rows"} | ({"columns"} if WORLD == 4 else set()), chosen
distributed.stop()
for case, one, several in zip(cases, alone, shared):
    compare(*case, one, several)
'''


BATCH_NORM = '''
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from vicjoint import distributed
from vicjoint.batch_norm import GlobalBatchNorm, synchronised

WORLD = int(sys.argv[1])
ROWS = {2: [6, 1], 4: [3, 1, 4, 2]}[WORLD]
N, CPU = sum(ROWS), torch.device("cpu")

def build(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(2), nn.BatchNorm1d(4, affine=False),
        nn.Flatten(1), nn.Linear(36, 8), nn.BatchNorm1d(8, momentum=None),
        nn.Linear(8, 3), nn.BatchNorm1d(3, track_running_stats=False),
    )
    return model.to(dtype)

def run(dtype, rows, called, model):
    """Two steps: what comes out of the second, gradients of input and weights, all buffers, an evaluation."""
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        x = 3 + torch.randn(N, 2, 5, 5, dtype=dtype, generator=generator)
        pull = torch.randn(N, 3, dtype=dtype, generator=generator)
        x = x[rows].requires_grad_()
        model.zero_grad()
        y = called(x)
        (distributed.world_size() * (y * pull[rows]).sum()).backward()
    evaluated = model[:-1].eval()(torch.ones(2, 2, 5, 5, dtype=dtype))
    return {
        "y": y.detach(), "x": x.grad / distributed.world_size(), "evaluated": evaluated.detach(),
        **{name: p.grad.clone() for name, p in model.named_parameters()},
        **{name: b.clone() for name, b in model.named_buffers()},
    }

both = (torch.float64, torch.float32)
alone = {}
for dtype in both:
    model = build(dtype)
    alone[dtype] = run(dtype, slice(0, N), model, model)
distributed.start()
own = distributed.own_rows(ROWS)
for dtype in both:
    model = synchronised(build(dtype), CPU)
    assert sum(isinstance(m, GlobalBatchNorm) for m in model) == 4
    assert model.state_dict().keys() == build(dtype).state_dict().keys()
    for name, got in run(dtype, own, DistributedDataParallel(model), model).items():
        expected = alone[dtype][name]
        expected = expected[own] if name in ("x", "y") else expected
        assert got.dtype == expected.dtype
        apart, largest = (float(x.double().abs().max()) for x in (got - expected, expected))
        worst = apart / max(1, largest)
        assert worst < (1e-12 if dtype == torch.float64 else 3e-5), (name, dtype, worst)
half = synchronised(nn.BatchNorm1d(4), CPU)
with torch.autocast("cpu", torch.bfloat16):
    y = half(torch.randn(ROWS[distributed.rank()], 4).bfloat16())
assert y.dtype == torch.bfloat16 and half.running_mean.dtype == torch.float32
y.float().sum().backward()
one = synchronised(nn.BatchNorm1d(4), CPU)
try:
    Row = one(torch.zeros(1 if distributed.rank() == 0 else 0, 4))
    raise SystemExit("one row in all was normalised")
except ValueError as error:
    assert "more than one value" in str(error)
distributed.stop()
'''


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("script", [SCRIPT, BATCH_NORM], ids=["objectives", "batch_norm"])
def test_union_batch(tmp_path, script, world):
    (tmp_path / "union.py").write_text(script)
    shared = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "union.py"), str(world)],
            env={**shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    said = [p.communicate(timeout=200)[0] for p in running]
    assert [p.returncode for p in running] == [0] * world, "\n".join(said)[-4000:]
