"""Which of three forms of variance and covariance costs least, by the shape of the batch.

For N rows of width D on W processes, n rows each, of both branches:

    rows         every process gathers all rows and makes its own rows of the Gram matrix
    columns      rows are exchanged for D / W columns, Gram matrices [N, N] summed, columns exchanged for rows
    covariance   covariance matrices [D, D] are summed

All give one value (spread.py). Costs are counted in received bytes, as if an exchange of nothing took as long
as EXCHANGE bytes and a byte as long as OPERATIONS: between GPUs of one node and those of several.
"""

# N rows of the global batch, n of one process, D embedding dimensions, W processes

from dataclasses import dataclass

EXCHANGE = 2**18
OPERATIONS = 2**8


@dataclass(frozen=True)
class Form:
    """What a step costs each process: bytes that it receives (as rings do it), exchanges one after the other,
    and operations of the products (a multiplication and an addition are two)."""

    name: str
    received: float
    exchanges: int
    operations: float

    @property
    def cost(self) -> float:
        """In received bytes."""
        return self.received + self.exchanges * EXCHANGE + self.operations / OPERATIONS


def forms(rows: int, dim: int, world: int, size: int = 4, shares: int = 1) -> list[Form]:
    """rows: N. size: bytes of a number of the embeddings; statistics have four at least. shares: how often
    statistics are taken, around different means."""
    others, own, wide = (world - 1) / world, rows / world, max(4, size)
    matrices = 2 * 2 * others * wide * shares  # both branches; a sum over a ring passes twice
    several = int(world > 1)
    return [
        Form(
            "covariance",
            matrices * (dim**2 + 2 * dim),
            several * 2 * 3 * shares,
            2 * shares * 4 * own * dim**2,
        ),
        Form("rows", 2 * others * rows * dim * size, several, 2 * shares * 4 * own * rows * dim),
        Form(
            "columns",
            2 * others * own * dim * (size + wide) + matrices * rows**2,
            several * 2 * (2 + shares),
            2 * shares * 4 * own * rows * dim,
        ),
    ]


def best_form(rows: int, dim: int, world: int, size: int = 4, shares: int = 1) -> str:
    """The name of the cheapest one."""
    return min(forms(rows, dim, world, size, shares), key=lambda form: form.cost).name
