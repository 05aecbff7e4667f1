"""Nearest neighbours: which of many embeddings are most similar to some others. Always exact.

similarity_QK, numbers_QK = neighbours(queries_QD, matrix_ND, k=10)

Similarity is the cosine of two embeddings seen from the mean of those that are searched, as in evaluations
(vicjoint.probes.ranking says why). The matrix may be mapped from a file: a block of rows is in memory at a
time. Where faiss is installed and there is much to do, it compares and sorts: the same neighbours (among
those that are equally similar but for rounding, others may come) in about two thirds of the time.
"""

# N rows, Q queries, D width, K neighbours

import importlib.util

import numpy as np
import torch
from torch.nn.functional import normalize

AT_ONCE = 2**24  # similarities
ROWS = 2**16  # of a block, at most
QUERIES = 2**10  # of a block, at most
FAISS_FROM = 2**27  # similarities in all: from there its import pays


def neighbours(queries: np.ndarray, matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(similarity float32 [Q, k] in [-1, 1], falling, numbers of the rows int64 [Q, k]) for queries [Q, D]
    among the rows of matrix [N, D]. Rows or queries that are not finite are similar to nothing; where a query
    has fewer than k neighbours, the rest has similarity -inf and the number -1."""
    mean, blocks = mean_of(matrix), block_starts(matrix, len(queries))
    near = faiss_nearest if len(queries) * len(matrix) >= FAISS_FROM and faiss_is_there() else torch_nearest
    similarity = np.full((len(queries), k), -np.inf, np.float32)
    numbers = np.full((len(queries), k), -1, np.int64)
    for start, stop in blocks:
        rows, kept = directions(matrix[start:stop], mean)
        for first in range(0, len(queries), QUERIES):
            part = slice(first, first + QUERIES)
            asked, finite = directions(queries[part], mean)
            at = first + finite
            found, places = near(asked, rows, min(k, len(rows)))
            both = np.concatenate([similarity[at], found], 1)
            names = np.concatenate([numbers[at], start + kept[places]], 1)
            best = np.argsort(-both, axis=1, kind="stable")[:, :k]
            similarity[at] = np.take_along_axis(both, best, 1)
            numbers[at] = np.take_along_axis(names, best, 1)
    return similarity, numbers


def block_starts(matrix: np.ndarray, queries: int) -> list[tuple[int, int]]:
    """(start, stop) of the blocks of rows, such that a block has at most AT_ONCE similarities."""
    step = min(ROWS, max(1, AT_ONCE // max(1, min(queries, QUERIES))))
    return [(start, min(start + step, len(matrix))) for start in range(0, len(matrix), step)]


def mean_of(matrix: np.ndarray) -> np.ndarray:
    """Mean [D] float64 of the finite rows of [N, D]; zeros where there is none."""
    total, count = np.zeros(matrix.shape[1]), 0
    for start, stop in block_starts(matrix, 1):
        kept, _ = finite_rows(matrix[start:stop])
        total += kept.sum(0, dtype=np.float64)
        count += len(kept)
    return total / max(count, 1)


def directions(vectors: np.ndarray, mean: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """(directions float32 [M, D] of length 1 as seen from `mean`, of the finite ones among vectors [N, D];
    their numbers [M])."""
    kept, finite = finite_rows(vectors)
    return normalize(torch.from_numpy(kept.astype(np.float32, copy=False) - mean.astype(np.float32))), finite


def finite_rows(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the rows of [N, D] without NaN or infinite values, which have a finite sum; their numbers)."""
    with np.errstate(invalid="ignore"):
        finite = np.flatnonzero(np.isfinite(vectors.sum(1)))
    return vectors if len(finite) == len(vectors) else vectors[finite], finite


def torch_nearest(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    similarity, places = (queries @ rows.T).topk(k, 1)
    return similarity.clamp(-1, 1).numpy(), places.numpy()


def faiss_nearest(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss  # pyright: ignore[reportMissingImports]

    if not len(queries) or not len(rows):
        return torch_nearest(queries, rows, k)
    similarity, places = faiss.knn(queries.numpy(), rows.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return similarity.clip(-1, 1), places


def faiss_is_there() -> bool:
    return importlib.util.find_spec("faiss") is not None
