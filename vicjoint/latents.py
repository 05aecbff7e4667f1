"""A discrete latent: K predictions of one target, and the choice among them.

A past has several futures, and the mean of their embeddings is none of them. A predictor with a latent of K
values gives one prediction for each. In training the energy (squared error) is minimised over the latent: a
sample uses the value whose prediction is nearest to its target, and the others are left free for other
futures (LeCun 2022, "A Path Towards Autonomous Machine Intelligence", sections 4.4 to 4.6; multiple choice
learning, Guzman-Rivera et al. 2012). The latent can say log2(K) bits about the target, so K has to be small.

The nearest alone is a winner that takes all: a latent that is never chosen never learns. So a latent that was
used more than others has to be nearer by more (a conscience: DeSieno 1988): its energy counts (K
usage)^BALANCE times. One used twice as often as its share needs an energy 16 % smaller.

`annealed`: at first every prediction learns from every target, and bit by bit the near ones alone (Perera et
al. 2024, arXiv 2407.15580). The weights are softmin_k(E_k / T), T = tau times the mean of the sample's
energies; tau falls from 1 to COLDEST in the first half of a run and then stays. Each keeps a share of FLOOR.
"""

# B batch, K latents, E embedding

import torch
from torch import Tensor, nn

from vicjoint import distributed

MOST = 64  # values of a latent; six bits about every target
BALANCE = 0.25  # power of a latent's usage that its energies are multiplied with
COLDEST = 0.02  # tau from the middle of the run on
FLOOR = 0.02  # share of a sample's weight that all predictions have alike
RATE = 0.02  # share of a step in `usage`, which so looks back over some fifty steps


def check_latents(latents: int) -> None:
    if not 1 <= latents <= MOST:
        raise ValueError(
            f"predictor.latents: {latents} is not a number of predictions. Expected 1 (no latent) to {MOST}:"
            " with more, the latent alone could tell which target of a batch is meant, and nothing would"
            " have to be predicted."
        )


class Choice(nn.Module):
    """Which of K predictions counts: with the target in sight (`forward`), or without (`guess`).

    usage [K]: share of the samples that chose each latent in training, over the last steps and all processes.
    Buffers only: they are in checkpoints, and a step that is left out or a pass that is repeated takes its
    counts back with them."""

    def __init__(self, latents: int, annealed: bool = False):
        super().__init__()
        self.annealed = annealed
        # tau; it follows from the step alone, so no checkpoint needs it
        self.register_buffer("tau", torch.ones(()), persistent=False)
        self.register_buffer("usage", torch.full((latents,), 1 / latents))
        self.register_buffer("counts", torch.zeros(latents))  # of this process, since the last step

    def forward(self, predictions: Tensor, z_b: Tensor) -> Tensor:
        """Of predictions [B, K, E] the nearest to z_b [B, E], sample by sample: [B, E]; in training with the
        conscience. The choice has no gradient; what is chosen has."""
        nearest = self.weigh(predictions, z_b).argmax(1)
        return predictions[torch.arange(len(predictions), device=predictions.device), nearest]

    @torch.no_grad()
    def weigh(self, predictions: Tensor, z_b: Tensor) -> Tensor:
        """How much each of predictions [B, K, E] learns from z_b [B, E]: weights [B, K] that sum to 1. Of the
        nearest, or outside of training, one of them is 1."""
        energy = energies(predictions, z_b)
        if self.training and self.annealed:
            heat = self.tau * energy.mean(1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
            weights = FLOOR / len(self.usage) + (1 - FLOOR) * (-energy / heat).softmax(1)
        else:
            if self.training:
                energy = energy * (len(self.usage) * self.usage).clamp_min(1e-6) ** BALANCE
            weights = nn.functional.one_hot(energy.argmin(1), len(self.usage)).to(energy.dtype)
        if self.training:
            self.counts += weights.sum(0)
        return weights

    @torch.no_grad()
    def guess(self, predictions: Tensor, probabilities: Tensor) -> Tensor:
        """Of predictions [B, K, E] the one with the smallest expected energy, [B, E], where the target is one
        of them, each with its probability [B, K]: a single prediction that has not seen the target."""
        places = precise(predictions)
        distances = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
        expected = (distances.square() @ probabilities.to(places.dtype)[:, :, None])[:, :, 0]
        return predictions[torch.arange(len(predictions), device=predictions.device), expected.argmin(1)]

    @torch.no_grad()
    def begin_step(self, done: float) -> None:
        """Cool down to where a run is of which the share `done` is over."""
        self.tau.fill_(COLDEST ** min(1.0, 2 * done))

    @torch.no_grad()
    def after_step(self) -> None:
        """Move `usage` on by what was chosen in this step on all processes."""
        counts = distributed.total(self.counts)
        self.usage.lerp_(counts / counts.sum().clamp_min(1), RATE)
        self.counts.zero_()


def energies(predictions: Tensor, z_b: Tensor) -> Tensor:
    """Squared errors [B, K] of predictions [B, K, E] for targets [B, E]; in float32 at least, whatever
    autocast gave."""
    return (precise(predictions) - precise(z_b)[:, None]).square().sum(-1)


def precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
