"""InfoNCE by squared distance against a plain float64 reference."""

import pytest
import torch

from vicjoint.objectives import InfoNCEDistance
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.registry import build

GROUP = torch.tensor([0, 0, 0, 1, 1, 2, 0])


def embeddings(dtype=torch.float64):
    made = torch.randn(2, len(GROUP), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [z.to(dtype).requires_grad_() for z in made]


def plain(z_a, z_b, temperature):
    """Sample by sample."""
    losses = []
    for i, group in enumerate(GROUP):
        others = torch.stack([z for z, of in zip(z_b, GROUP) if of == group])
        energies = (z_a[i] - others).square().mean(1) / temperature
        own = (z_a[i] - z_b[i]).square().mean() / temperature
        losses.append(own + torch.logsumexp(-energies, 0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("temperature", [1.0, 0.02])
def test_value_and_gradient_are_those_of_the_plain_form(temperature):
    z, same = embeddings(), embeddings()
    loss, terms = InfoNCEDistance(temperature)(*z, GROUP)
    expected = plain(*same, temperature)
    assert torch.allclose(loss, expected, rtol=1e-10) and terms == {"contrast": loss}
    (3 * loss).backward(), (3 * expected).backward()
    for one, other in zip(z, same):
        assert torch.allclose(one.grad, other.grad, rtol=1e-8, atol=1e-12)


def test_targets_are_told_from_those_of_their_own_step():
    group, step = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 1] * 4)
    z_a, z_b = torch.randn(2, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    objective = InfoNCEDistance()
    objective.bind(NextFrame(horizon=2))
    loss, _ = objective(z_a, z_b, group)
    assert torch.allclose(loss, InfoNCEDistance()(z_a, z_b, 2 * group + step)[0], rtol=1e-12)
    assert not torch.allclose(loss, InfoNCEDistance()(z_a, z_b, group)[0], rtol=1e-3)


def test_large_distances_stay_finite_in_half_precision():
    z = [100 * x.detach().half() for x in embeddings(torch.float32)]
    loss, _ = InfoNCEDistance()(z[0].requires_grad_(), z[1], GROUP)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and z[0].grad.dtype == torch.float16


def test_a_sample_that_is_alone_adds_nothing():
    z_a, z_b = embeddings()
    InfoNCEDistance()(z_a, z_b, GROUP)[0].backward()
    assert not z_a.grad[5].any() and not z_b.grad[5].any() and z_a.grad[4].any()


def test_what_it_cannot_do_is_said():
    z_a, z_b = embeddings()
    with pytest.raises(ValueError, match="infonce_distance needs the group of every sample"):
        InfoNCEDistance()(z_a, z_b)
    with pytest.raises(ValueError, match="7 samples came in as many groups. Set pair.windows above 1"):
        InfoNCEDistance()(z_a, z_b, torch.arange(7))
    with pytest.raises(ValueError, match="infonce_distance needs two embeddings of one shape"):
        InfoNCEDistance()(z_a, z_b[:, :3], GROUP)
    with pytest.raises(ValueError, match="objective.temperature: expected a number above 0"):
        build("objective", {"name": "infonce_distance", "temperature": 0})
