"""Maps: embeddings of any width -> places in the plane.

maps(vectors_ND)          # [Map("PCA", places_N2, "..."), and where it is installed, Map("UMAP", ...)]

What is mapped are the directions seen from the mean, whose products are the similarities of neighbours.
"""

# N items, D width

import importlib.util
import warnings
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from vicjoint.embeddings.neighbours import directions, mean_of

NEIGHBOURS = 15  # that UMAP keeps together
FEWEST = 2 * NEIGHBOURS  # items: with fewer UMAP's map says nothing that PCA's does not


class Map(NamedTuple):
    """places: float32 [N, 2]; NaN for items whose embedding is not finite. note: how to read it."""

    name: str
    places: np.ndarray
    note: str


def maps(vectors: np.ndarray, quick: bool = False) -> list[Map]:
    """The maps of vectors [N, D]: by principal components, and by UMAP where it is installed. quick: the
    first alone."""
    x, finite = directions(vectors, mean_of(vectors))

    def of_all(places: np.ndarray) -> np.ndarray:
        found = np.full((len(vectors), 2), np.nan, np.float32)
        found[finite] = places
        return found

    places, share = principal(x)
    found = [Map("PCA", of_all(places), f"The two axes hold {share:.0%} of the variance.")]
    if not quick and importlib.util.find_spec("umap") is not None and len(x) >= FEWEST:
        tqdm.write(f"map: UMAP of {len(x):,} items, which may take a minute")
        note = "Near items are near in the embedding; far distances and axes mean nothing."
        found.append(Map("UMAP", of_all(by_umap(x)), note))
    return found


def principal(x: torch.Tensor) -> tuple[np.ndarray, float]:
    """(the first two principal components [N, 2], their share of the variance) of x [N, D]."""
    if len(x) < 2:
        return np.zeros((len(x), 2), np.float32), 0.0
    x = x - x.mean(0)
    width = min(2, *x.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, size, axes = torch.svd_lowrank(x, q=min(8, *x.shape), niter=4)
    axes = axes[:, :width]
    # an axis has no sign of its own: its largest entry points up, so that the map is the same each time
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    places = torch.zeros(len(x), 2)
    places[:, :width] = x @ axes
    return places.numpy(), float(size[:width].square().sum() / x.square().sum().clamp_min(1e-12))


def by_umap(x: torch.Tensor) -> np.ndarray:
    """UMAP's places [N, 2] of directions x [N, D]; the same each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of its own threads, and numba of its own future
        import umap  # pyright: ignore[reportMissingImports]

        return umap.UMAP(n_neighbors=NEIGHBOURS, random_state=0).fit_transform(x.numpy())
