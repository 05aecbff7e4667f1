"""Predicted futures against those that are possible, as places in the picture.

Errors are in units of d, the distance of a clip's two nearest futures: 0 is a future, 0.5 lies between two,
and below 0.5 a prediction can be of one future only. Places are decoded from embeddings by a ridge regression
that is fitted on true frames of other videos, so it has an error of its own: that of the row `targets`.
"""

# Q queries (one a test video), K predictions, M possible futures, F frames, E embedding

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import means
from vicjoint.probes.ridge import fit_chosen

LEAST = 1e-3  # probability that counts in the likelihood, where a model gives a future none
SEED = 0  # of the noise
OTHER = 2  # queries on: another clip, of which the same regression decodes


@dataclass
class Fork:
    """What is true of all queries: places of the futures [Q, M, 2], their chances [Q, M], both float64, and
    how far a straight way goes on behind the clip, as a multiple of its length, [Q, 1]."""

    futures: np.ndarray
    chances: np.ndarray
    reach: np.ndarray

    @property
    def d(self) -> np.ndarray:
        """[Q, 1, 1]."""
        pairs = combinations(range(self.futures.shape[1]), 2)
        apart = [np.linalg.norm(self.futures[:, i] - self.futures[:, j], axis=-1) for i, j in pairs]
        return np.min(apart, 0)[:, None, None]


@dataclass
class Embedded:
    """All queries through one model: predictions [Q, K, E] with their probabilities [Q, K]; embeddings of the
    true targets [Q, M, E], of the clips' last frame and of the first frame of their videos [Q, E]."""

    predictions: Tensor
    probabilities: Tensor
    targets: Tensor
    last: Tensor
    first: Tensor


class Decoder:
    """Embedding -> place: of the even queries by what the odd ones' frames say, and the other way round.
    frames: of each query z_b [F, E]; places: of each [F, 2], nan where none is known."""

    def __init__(self, frames: list[Tensor], places: list[Tensor]):
        self.fits = []
        for fold in (0, 1):
            x, y = torch.cat(frames[1 - fold :: 2]), torch.cat(places[1 - fold :: 2])
            known = ~y.isnan().any(1)
            number = torch.arange(len(y))[known]
            held = number >= len(y) * 3 // 4  # of the last videos
            x, y = x[known], y[known].double()
            self.fits.append(
                fit_chosen(x, y, held, lambda found, y=y[held]: float((found - y).norm(dim=1).mean()))
            )

    def __call__(self, z: Tensor) -> np.ndarray:
        """[Q, ..., 2] of [Q, ..., E]."""
        found = torch.zeros(*z.shape[:-1], 2, dtype=torch.float64)
        for fold, (ridge, penalty) in enumerate(self.fits):
            of_fold = z[fold::2]
            found[fold::2] = ridge.predict(of_fold.flatten(0, -2), penalty).unflatten(0, of_fold.shape[:-1])
        return found.numpy()


def rows_of(embedded: Embedded, decode: Decoder, fork: Fork) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{row: (places [Q, K, 2], their probabilities [Q, K])}: the model, and what it is compared with."""
    pi = embedded.probabilities.double().numpy()
    alike = np.full_like(pi, 1 / pi.shape[1])
    mean = (embedded.probabilities[:, :, None] * embedded.predictions).sum(1, keepdim=True)
    last, first = decode(embedded.last), decode(embedded.first)
    rows = {
        "model": (decode(embedded.predictions), pi),
        "targets": (decode(embedded.targets), fork.chances),
        "mean": (decode(mean), np.ones((len(pi), 1))),
        "copy_last": (last[:, None], np.ones((len(pi), 1))),
        "constant_velocity": ((last + fork.reach * (last - first))[:, None], np.ones((len(pi), 1))),
    }
    if pi.shape[1] > 1:
        of_other = embedded.predictions.roll(OTHER, 0)
        rows |= {
            "noise": (decode(mean + noise(embedded.predictions - mean, embedded.probabilities)), alike),
            "other_clips": (decode(of_other), np.roll(pi, OTHER, 0)),
            "foreign_latent": (
                np.take_along_axis(rows["model"][0], np.roll(codes(embedded), OTHER, 0)[:, :, None], 1),
                fork.chances,
            ),
        }
    return rows


def noise(apart: Tensor, probabilities: Tensor) -> Tensor:
    """Numbers [Q, K, E] with mean 0 and the covariance of `apart` [Q, K, E], predictions less their mean."""
    weighted = (apart * probabilities[:, :, None].sqrt()).flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(weighted.T @ weighted / len(apart))
    drawn = torch.randn(apart.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    return (drawn * values.clamp_min(0).sqrt() @ vectors.T).to(apart.dtype)


def codes(embedded: Embedded) -> np.ndarray:
    """Which prediction is nearest to each true target, [Q, M]."""
    return torch.cdist(embedded.targets, embedded.predictions).argmin(2).numpy()


def measured(places: np.ndarray, pi: np.ndarray, fork: Fork) -> dict[str, np.ndarray]:
    """Of predicted places [Q, K, 2] with probabilities [Q, K] the metrics of each query, [Q]; and `mass`, the
    probability of the predictions that are nearest to each future, [Q, M]."""
    p, d = fork.chances, fork.d
    errors = np.linalg.norm(places[:, :, None] - fork.futures[:, None], axis=-1) / d  # [Q, K, M]
    apart = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1) / d
    drawn = np.einsum("qk,qkm,qm->q", pi, errors, p)
    mass = np.einsum("qk,qkm->qm", pi, np.eye(p.shape[1])[errors.argmin(2)])
    return {
        "error": drawn,
        "best_of_k": (p * errors.min(1)).sum(1),
        "validity": (pi * errors.min(2)).sum(1),
        "coverage": errors.min(1).mean(1),
        "energy": drawn - np.einsum("qk,qkl,ql->q", pi, apart, pi) / 2,
        "prior_error": np.abs(mass - p).mean(1),
        "nll": -(p * np.log(np.maximum(mass, LEAST))).sum(1),
        "mass": mass,
    }


def score(places: np.ndarray, pi: np.ndarray, fork: Fork) -> dict[str, float]:
    """Means over the queries, with their intervals."""
    found = measured(places, pi, fork)
    mass, of_queries = found.pop("mass"), means(found)

    def metrics(n: np.ndarray) -> dict[str, float]:
        bias = np.abs(mass[n].mean(0) - fork.chances[n].mean(0)).max()
        return {**of_queries(n), "prior_bias": float(bias)}

    return with_intervals(metrics, len(pi))


def use_of_codes(embedded: Embedded, fork: Fork) -> dict[str, float]:
    """perplexity of the latent by its probabilities; bits that say together which latent fits a target and
    which of the futures that is."""
    use = embedded.probabilities.double().mean(0).numpy()
    chosen = np.eye(embedded.predictions.shape[1])[codes(embedded)]  # [Q, M, K]
    joint = np.einsum("qm,qmk->mk", fork.chances, chosen) / len(chosen)
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    inside = joint > 0
    return {
        "perplexity": float(np.exp(-(use * np.log(np.maximum(use, 1e-12))).sum())),
        "bits": float((joint[inside] * np.log2(joint[inside] / alone[inside])).sum()),
    }
