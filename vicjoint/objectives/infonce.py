"""InfoNCE: the contrastive losses of SimCLR, CLIP and MoCo."""

# N samples of the global batch, n of this process, D embedding dimensions, K queue length

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn

from vicjoint import distributed
from vicjoint.objectives.gradient import attach, check_embeddings, wants_gradient, wide
from vicjoint.objectives.products import rows_of_gram
from vicjoint.options import Natural, Positive
from vicjoint.parts import Objective
from vicjoint.registry import register

Form = Literal["clip", "nt_xent", "moco"]
Negatives = Literal["all", "group"]
MOST_SCALE = 100.0  # a learnt temperature stays at 0.01 or above (CLIP, section 2.5)
SAFE_SPAN = 80.0  # exp(-80) is a float32; similarities span 2 / temperature


@register("objective", "infonce")
class InfoNCE(Objective):
    """Cross entropy of telling a sample's partner from the other samples, by cosine similarity / temperature.

    form: clip: z_a among all z_b and z_b among all z_a, averaged (Radford et al. 2021); nt_xent: each of the
    2 N views among the 2 N - 1 others (SimCLR, Chen et al. 2020); moco: z_a among its z_b and a queue of the
    last `queue` z_b of earlier batches (He et al. 2020), which needs `b.weights: ema`.
    learnable: train the temperature, starting from `temperature`. negatives: all: the other samples of the
    batch; group: those of the sample's own group (windows of one video), so that what a group shares does not
    help to tell them apart. A sample that is alone in its group adds nothing.
    """

    terms = ("contrast",)

    def __init__(
        self,
        temperature: Positive = 0.1,
        learnable: bool = False,
        form: Form = "clip",
        queue: Natural = 0,
        negatives: Negatives = "all",
    ):
        super().__init__()
        if form == "moco" and negatives == "group":
            raise ValueError(
                "objective.negatives: group with form: moco, whose queue knows no groups. Expected all, or"
                " form: clip or nt_xent."
            )
        if (form == "moco") != (queue > 0):
            raise ValueError(
                f"objective.queue: {queue} with form: {form}. Expected a length such as 4096 with moco, and 0"
                " without it."
            )
        self.form, self.temperature, self.has_memory = form, temperature, queue > 0
        self.negatives = negatives
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature))) if learnable else None
        if queue:
            # takes the embeddings' width with the first batch
            self.register_buffer("queue", torch.zeros(queue, 0))
            self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @classmethod
    def needs_slow_branch(cls, options) -> str | None:
        return "form" if options.get("form") == "moco" else None

    def forward(
        self, z_a: Tensor, z_b: Tensor, group: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """z_a, z_b [n, D]; group [n] int64, needed where negatives is "group". Rows of all processes count.
        In training mode the moco form takes z_b into the queue. Raises ValueError on different shapes, fewer
        than two samples, groups without two samples in any of them, or moco with a z_b that wants a gradient.
        """
        check_embeddings("infonce", z_a, z_b)
        wanted = wants_gradient(z_a), wants_gradient(z_b)
        if self.form == "moco" and wanted[1]:
            raise ValueError(
                "infonce with form: moco compares with embeddings of earlier batches, so branch b must change"
                " slowly. Set b.weights: ema."
            )
        learns = self.log_scale is not None and wants_gradient(self.log_scale)
        wanted = wanted[0] or learns, wanted[1]  # the scale's gradient follows from that of z_a
        with torch.no_grad(), torch.autocast(z_a.device.type, enabled=False):
            loss, gradients, of_scale = self._compute(wide(z_a), wide(z_b), group, wanted)
        of_parameter = [(self.log_scale, of_scale)] if learns else []
        return attach(loss, (z_a, gradients[0]), (z_b, gradients[1]), *of_parameter), {"contrast": loss}

    def _compute(self, x_a: Tensor, x_b: Tensor, group: Tensor | None, wanted: tuple[bool, bool]):
        """(loss, gradients of own rows, gradient of log_scale)."""
        counts = distributed.row_counts(len(x_a))
        rows = sum(counts)
        if rows < 2 and self.form != "moco":
            raise ValueError(f"infonce needs at least 2 samples in the global batch, got {rows}.")
        scale = (
            1 / self.temperature
            if self.log_scale is None
            else self.log_scale.exp().clamp(max=MOST_SCALE).to(x_a.dtype)
        )
        # a learnt scale takes the form that is safe at any: reading it here would make a GPU wait
        one_shift = self.log_scale is None and 2 * scale < SAFE_SPAN
        (a, norm_a), (b, norm_b) = unit(x_a), unit(x_b)
        apart = None if self.negatives == "all" else self._apart(group, counts)
        if self.form == "clip":
            loss, of_a, of_b = clip(a, b, counts, scale, one_shift, wanted, apart)
        elif self.form == "nt_xent":
            loss, of_a, of_b = nt_xent(a, b, counts, scale, one_shift, any(wanted), apart)
        else:
            loss, of_a, of_b = moco(a, b, self._keys(b), scale, rows, wanted[0])
            if self.training:
                self._enqueue(distributed.gather(b, counts))
        loss = distributed.total(loss)
        # every logit is a similarity times the scale, so the scale's gradient is sum_i <a_i, gradient_i> /
        # scale, of log_scale without the division; half as much where each similarity is counted from both of
        # its views
        of_scale = None
        if self.log_scale is not None and of_a is not None:
            both = (of_a * a).sum() + (of_b * b).sum() if self.form == "nt_xent" else 2 * (of_a * a).sum()
            of_scale = (distributed.total(both / 2) * (self.log_scale.exp() <= MOST_SCALE)).to(
                self.log_scale.dtype
            )
        # DistributedDataParallel averages, the union batch's gradient is the sum
        world = distributed.world_size()
        gradients = [
            None if not want else through_unit(of, z, norm).mul_(world)
            for want, of, z, norm in zip(wanted, (of_a, of_b), (a, b), (norm_a, norm_b))
        ]
        return loss, gradients, of_scale

    def _apart(self, group: Tensor | None, counts: list[int]) -> Tensor:
        """Whether own row and row are of different groups, bool [n, N]."""
        if group is None:
            raise ValueError("infonce with negatives: group needs the group of every sample.")
        everyone = distributed.gather(group, counts)
        if len(everyone.unique()) == len(everyone):
            raise ValueError(
                f"infonce with negatives: group needs a group with at least two samples; {len(everyone)}"
                " samples came in as many groups. Set pair.windows above 1, or objective.negatives=all."
            )
        return group[:, None] != everyone[None]

    def _keys(self, b: Tensor) -> Tensor:
        """The queue [K, D], first filled with random directions (as MoCo's)."""
        if self.queue.shape[1] != b.shape[1]:
            generator = torch.Generator().manual_seed(0)  # the same on every process
            fill = torch.randn(len(self.queue), b.shape[1], generator=generator).to(b)
            self.queue = nn.functional.normalize(fill, dim=1)
        return self.queue.to(b.dtype)

    def _enqueue(self, keys: Tensor) -> None:
        keys = keys[-len(self.queue) :]
        places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys.to(self.queue.dtype)
        self.place = (self.place + len(keys)) % len(self.queue)

    def _load_from_state_dict(self, state_dict, prefix, *given):
        if f"{prefix}queue" in state_dict and self.form == "moco":
            # its width comes with the first batch
            self.queue = self.queue.new_zeros(state_dict[f"{prefix}queue"].shape)
        super()._load_from_state_dict(state_dict, prefix, *given)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """(rows of length one, their lengths [n, 1])."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
    return x / norm, norm


def through_unit(gradient: Tensor, z: Tensor, norm: Tensor) -> Tensor:
    """Gradient with respect to the rows before `unit`."""
    return gradient.addcmul(z, (gradient * z).sum(1, keepdim=True), value=-1).div_(norm)


class Block:
    """Scaled similarities of own rows with others, [n, M], of which row i's partner is number partners[i].
    `one_shift`: exp(scale (similarity - 1)) is taken once for all sums, which is safe while 2 scale < 80;
    else each sum has the maximum of its own row. Overwrites `similarity`."""

    def __init__(self, similarity: Tensor, partners: Tensor, scale, one_shift: bool):
        self.scale, self.one_shift, self.partners = scale, one_shift, partners
        self.values = similarity.sub_(1).mul_(scale).exp_() if one_shift else similarity.mul_(scale)

    @property
    def T(self) -> "Block":
        """The others' rows, where all rows are own."""
        other = copy.copy(self)
        other.values = self.values.T
        return other

    def log_sums(self) -> Tensor:
        """log sum_j exp(scale similarity_ij), [n]."""
        return (
            self.values.sum(1).log_().add_(self.scale) if self.one_shift else torch.logsumexp(self.values, 1)
        )

    def pull(self, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        """Softmax along the rows plus softmax along the columns, given their log sums [n], [M], minus 2 for
        partners. Overwrites the values."""
        if self.one_shift:
            row, column = (self.scale - of_rows).exp_(), (self.scale - of_columns).exp_()
            p = self.values.mul_(row[:, None] + column[None])
        else:
            p = (self.values - of_rows[:, None]).exp_().add_((self.values - of_columns[None]).exp_())
        # here, not after the product with the embeddings: where partners are found the difference is tiny
        p[torch.arange(len(p), device=p.device), self.partners] -= 2
        return p


def without(similarity: Tensor, apart: Tensor | None) -> Tensor:
    """Similarities, in place, of which those that are not to be seen are minus infinity; None: all are."""
    return similarity if apart is None else similarity.masked_fill_(apart, -torch.inf)


def clip(
    a: Tensor,
    b: Tensor,
    counts: list[int],
    scale,
    one_shift: bool,
    wanted: tuple[bool, bool],
    apart: Tensor | None,
):
    """(own share of the loss, gradients with respect to own a and b [n, D]). apart: bool [n, N], which pairs
    of an own row and a row are no negatives."""
    rows, alone = sum(counts), distributed.world_size() == 1
    all_a, all_b = distributed.gather(a, counts), distributed.gather(b, counts)
    own = distributed.own_rows(counts)
    partners = torch.arange(own.start, own.stop, device=a.device)
    ab = Block(without(a @ all_b.T, apart), partners, scale, one_shift)
    ba = ab.T if alone else Block(without(b @ all_a.T, apart), partners, scale, one_shift)
    lse_a, lse_b = ab.log_sums(), ba.log_sums()
    loss = ((lse_a + lse_b) / 2 - scale * (a * b).sum(1)).sum() / rows
    if not any(wanted):
        return loss, None, None
    every_a, every_b = distributed.gather(lse_a, counts), distributed.gather(lse_b, counts)
    weight = scale / (2 * rows)
    pull = ab.pull(lse_a, every_b)
    of_a = (pull @ all_b).mul_(weight)
    if not wanted[1]:
        return loss, of_a, None
    pull = pull.T if alone else ba.pull(lse_b, every_a)
    return loss, of_a, (pull @ all_a).mul_(weight)


def nt_xent(
    a: Tensor, b: Tensor, counts: list[int], scale, one_shift: bool, wanted: bool, apart: Tensor | None
):
    """(own share of the loss, gradients with respect to own a and b [n, D]). apart: as in clip."""
    rows, n = sum(counts), len(a)
    z = torch.cat([a, b])
    twice = [2 * c for c in counts]
    everyone = distributed.gather(z, twice)
    own = distributed.own_rows(twice)
    similarity = rows_of_gram(everyone, own)
    similarity[:, own].fill_diagonal_(-torch.inf)  # a view is not its own negative
    if apart is not None:  # both views of each process's rows follow each other
        twice_apart = [part.repeat(2, 2) for part in apart.split(counts, 1)]
        similarity.masked_fill_(torch.cat(twice_apart, 1), -torch.inf)
    block = Block(similarity, own.start + torch.arange(2 * n, device=z.device).roll(n), scale, one_shift)
    lse = block.log_sums()
    loss = (lse.sum() - 2 * (a * b).sum() * scale) / (2 * rows)
    if not wanted:
        return loss, None, None
    gradient = (block.pull(lse, distributed.gather(lse, twice)) @ everyone).mul_(scale / (2 * rows))
    return loss, gradient[:n], gradient[n:]


def moco(a: Tensor, b: Tensor, keys: Tensor, scale, rows: int, wanted: bool):
    """(own share of the loss, gradient with respect to own a [n, D], None)."""
    logits = torch.cat([(a * b).sum(1, keepdim=True), a @ keys.T], 1).mul_(scale)
    lse = torch.logsumexp(logits, 1)
    loss = (lse - logits[:, 0]).sum() / rows
    if not wanted:
        return loss, None, None
    p = logits.sub_(lse[:, None]).exp_()
    of_a = torch.addcmul(p[:, 1:] @ keys, p[:, :1] - 1, b)
    return loss, of_a.mul_(scale / rows), None
