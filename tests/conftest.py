"""Fixtures shared by the tests."""

import os
import sys
from pathlib import Path

import pytest

# read when the libraries are first imported: what is not on this machine is refused at once, without retries;
# and one thread for each process, since tests run side by side
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks` and `encoders` of the checkout, also when vicjoint is installed


@pytest.fixture
def shared_data() -> Path:
    """Real data beside the checkout, where there is any."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.exists():
        pytest.skip("no shared data beside this checkout")
    return folder
