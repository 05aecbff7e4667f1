"""Two gloo processes with different data and different row counts: the loss and the gradients of one process with the union."""

import os
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
from vicjoint.objectives import VICReg

distributed.start()
rank = distributed.rank()
assert distributed.world_size() == 2
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 24)).double()
view_a, view_b = torch.randn(10, 5).double(), torch.randn(10, 5).double()
group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
objective = VICReg(statistics=sys.argv[1])

mine = slice(0, 6) if rank == 0 else slice(6, 10)  # uneven, groups whole
parallel = DistributedDataParallel(model)
z = parallel(torch.cat([view_a[mine], view_b[mine]]))
loss, terms = objective(*z.chunk(2), group[mine])
loss.backward()
gradients = [p.grad.clone() for p in model.parameters()]
distributed.stop()  # from here on this is one process

model.zero_grad()
whole, _ = objective(model(view_a), model(view_b), group)
whole.backward()
assert abs(loss.item() - whole.item()) < 1e-12, (loss.item(), whole.item())
largest = max(p.grad.abs().max() for p in model.parameters())
worst = max(float((g - p.grad).abs().max() / largest) for g, p in zip(gradients, model.parameters()))
assert worst < 1e-12, worst
'''


@pytest.mark.parametrize("statistics", ["global", "both"])
def test_union_batch(tmp_path, statistics):
    (tmp_path / "union.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "union.py"), statistics],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
