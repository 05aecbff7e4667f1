"""Encoders of molecule graphs: view torch_geometric.data.Batch (categories as in vicjoint.batch) -> y [B,
dim].

    # sums over neighbours and bonds (GIN with edge features), batch norm
    encoder: {name: gine, dim: 256, layers: 5}
    # a graph transformer: attention over neighbours with bond features
    encoder: {name: attention, dim: 256, layers: 4}

`pooling` is `mean` or `sum` over a molecule's atoms. `virtual_node` adds one node per molecule that every
atom hears and speaks to.
"""

# N atoms, E bonds (both directions), B molecules, D representation

from typing import Literal

import torch
from torch import Tensor, nn

from vicjoint.facts.graphs import ATOM_CATEGORIES, BOND_CATEGORIES
from vicjoint.options import Count, ShareBelowOne
from vicjoint.registry import ComponentError, need, register_encoder
from vicjoint.tokens import TokenEncoder


class Categories(nn.Module):
    """Sum of one embedding per column: categories [N, K] int64 -> [N, dim]. One table; a column's rows begin
    at its offset."""

    def __init__(self, sizes: dict[str, int], dim: int):
        super().__init__()
        counts = torch.tensor(list(sizes.values()))
        self.register_buffer("offsets", counts.cumsum(0) - counts, persistent=False)
        self.table = nn.EmbeddingBag(int(counts.sum()), dim, mode="sum")
        nn.init.normal_(self.table.weight, std=len(sizes) ** -0.5)

    def forward(self, categories: Tensor) -> Tensor:
        return self.table(categories + self.offsets)


class VirtualNode(nn.Module):
    """One state per molecule [B, dim]: hears the sum of its atoms, is added to each of them."""

    def __init__(self, dim: int):
        super().__init__()
        self.update = nn.Sequential(
            nn.Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU(inplace=True), nn.Linear(dim, dim)
        )

    def forward(self, state: Tensor, x: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        state = state + self.update(state + pool(x, batch, len(state), "sum"))
        return state, x + state[batch]


def pool(x: Tensor, batch: Tensor, molecules: int, how: str) -> Tensor:
    """Mean or sum of x [N, D] over each molecule's atoms, [B, D] in float32."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        total = x.new_zeros(molecules, x.shape[1]).index_add_(0, batch, x)
        if how == "sum":
            return total
        return total / x.new_zeros(molecules, 1).index_add_(0, batch, x.new_ones(len(x), 1)).clamp_min(1)


class GraphEncoder(TokenEncoder, nn.Module):
    """Embeddings of atoms and bonds, the layers `(x, edge_index, bonds) -> x` with a virtual node between
    them, pooling."""

    def __init__(self, dim: int, layers: list[nn.Module], pooling: str, virtual_node: bool):
        super().__init__()
        self.dim, self.pooling = dim, pooling
        self.atoms, self.bonds = Categories(ATOM_CATEGORIES, dim), Categories(BOND_CATEGORIES, dim)
        self.virtual = nn.ModuleList(VirtualNode(dim) for _ in layers[1:]) if virtual_node else None
        self.layers = nn.ModuleList(layers)

    def forward(self, view) -> Tensor:
        return pool(self._atoms(view), view.batch, view.num_graphs, self.pooling)

    def forward_tokens(self, view) -> tuple[Tensor, Tensor]:
        (utils,) = need(["torch_geometric.utils"], "a molecule's tokens", "molecule")
        return utils.to_dense_batch(self._atoms(view), view.batch, batch_size=view.num_graphs)

    def _atoms(self, view) -> Tensor:
        """[N, D]."""
        x, bonds, batch, molecules = (
            self.atoms(view.x),
            self.bonds(view.edge_attr),
            view.batch,
            view.num_graphs,
        )
        state = None if self.virtual is None else x.new_zeros(molecules, self.dim)
        for i, layer in enumerate(self.layers):
            x = layer(x, view.edge_index, bonds)
            if self.virtual is not None and i < len(self.virtual):
                state, x = self.virtual[i](state, x, batch)
        return x


class GINELayer(nn.Module):
    """x + ReLU(norm(GINE(x)))."""

    def __init__(self, dim: int, conv):
        super().__init__()
        mlp = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.BatchNorm1d(2 * dim), nn.ReLU(inplace=True), nn.Linear(2 * dim, dim)
        )
        self.conv, self.norm = conv(mlp, train_eps=True), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor, edge_index: Tensor, bonds: Tensor) -> Tensor:
        return x + self.norm(self.conv(x, edge_index, bonds)).relu()


@register_encoder("molecule", "gine")
class GINE(GraphEncoder):
    """GIN with edge features (Hu et al. 2020, "Strategies for pre-training graph neural networks"),
    residual."""

    def __init__(
        self,
        dim: Count = 256,
        layers: Count = 5,
        pooling: Literal["mean", "sum"] = "mean",
        virtual_node: bool = False,
    ):
        (graphs,) = need(["torch_geometric.nn"], "encoder 'molecule/gine'", "molecule")
        super().__init__(dim, [GINELayer(dim, graphs.GINEConv) for _ in range(layers)], pooling, virtual_node)


class AttentionLayer(nn.Module):
    """Pre-norm: attention over the bonded atoms, then a feed-forward block, each added to its input."""

    def __init__(self, dim: int, heads: int, dropout: float, conv):
        super().__init__()
        self.norm, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = conv(dim, dim // heads, heads, edge_dim=dim, dropout=dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, edge_index: Tensor, bonds: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x), edge_index, bonds)
        return x + self.mlp(self.norm_mlp(x))


@register_encoder("molecule", "attention")
class GraphTransformer(GraphEncoder):
    """Attention over neighbours with the bond in keys and values (Shi et al. 2021, "Masked label
    prediction")."""

    def __init__(
        self,
        dim: Count = 256,
        layers: Count = 4,
        heads: Count = 8,
        pooling: Literal["mean", "sum"] = "mean",
        virtual_node: bool = False,
        dropout: ShareBelowOne = 0.0,
    ):
        (graphs,) = need(["torch_geometric.nn"], "encoder 'molecule/attention'", "molecule")
        if dim % heads:
            raise ComponentError(
                f"encoder 'molecule/attention': dim {dim} is not a multiple of heads {heads}. Change one of"
                " them."
            )
        super().__init__(
            dim,
            [AttentionLayer(dim, heads, dropout, graphs.TransformerConv) for _ in range(layers)],
            pooling,
            virtual_node,
        )
