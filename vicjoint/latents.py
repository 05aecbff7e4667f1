"""A discrete latent: K predictions of one target, and the choice among them.

A past has several futures, and the mean of their embeddings is none of them. A predictor with a latent of K
values gives one prediction for each. In training the energy (squared error) is minimised over the latent: a
sample uses the value whose prediction is nearest to its target, and the others are left free for other
futures (LeCun 2022, "A Path Towards Autonomous Machine Intelligence", sections 4.4 to 4.6; multiple choice
learning, Guzman-Rivera et al. 2012). The latent can say log2(K) bits about the target, so K has to be small.

The nearest alone is a winner that takes all: a latent that is never chosen never learns. So a latent that was
used more than others has to be nearer by more (a conscience: DeSieno 1988): its energy counts (K
usage)^BALANCE times. One used twice as often as its share needs an energy 16 % smaller.
"""

# B batch, K latents, E embedding

import torch
from torch import Tensor, nn

from vicjoint import distributed

MOST = 64  # values of a latent; six bits about every target
BALANCE = 0.25  # power of a latent's usage that its energies are multiplied with
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
    Buffers only: it is in checkpoints, and a step that is left out or a pass that is repeated takes its
    counts back with them."""

    def __init__(self, latents: int):
        super().__init__()
        self.register_buffer("usage", torch.full((latents,), 1 / latents))
        self.register_buffer("counts", torch.zeros(latents))  # of this process, since the last step

    def forward(self, predictions: Tensor, z_b: Tensor) -> Tensor:
        """Of predictions [B, K, E] the nearest to z_b [B, E], sample by sample: [B, E]; in training with the
        conscience. The choice has no gradient; what is chosen has."""
        with torch.no_grad():
            energy = energies(predictions, z_b)
            if self.training:
                energy = energy * (len(self.usage) * self.usage).clamp_min(1e-6) ** BALANCE
            nearest = energy.argmin(1)
            if self.training:
                self.counts += nn.functional.one_hot(nearest, len(self.counts)).sum(0)
        return predictions[torch.arange(len(predictions), device=predictions.device), nearest]

    @torch.no_grad()
    def guess(self, predictions: Tensor) -> Tensor:
        """Of predictions [B, K, E] the one with the smallest expected energy, [B, E], where the target is one
        of them, each as likely as its latent was used in training: a single prediction that has not seen the
        target."""
        places = precise(predictions)
        expected = torch.cdist(
            places, places, compute_mode="donot_use_mm_for_euclid_dist"
        ).square() @ self.usage.to(places.dtype)
        return predictions[torch.arange(len(predictions), device=predictions.device), expected.argmin(1)]

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
