"""Ranks, their metrics and chance against slow float64 references: ties, several right answers,
duplicates."""

import itertools

import numpy as np
import pytest
import torch

from vicjoint.probes import ranking
from vicjoint.probes.ranking import Right, counts, first_of_each, metrics, numbered, prototypes, ranks


def slow_ranks(queries, candidates, right):
    """Every query by itself, in float64 and plain loops."""
    found, mean = [], candidates.double().numpy().mean(0)
    for q, answers in zip(queries.double().numpy() - mean, right.numpy()):
        cosine = [
            float(q @ c / np.linalg.norm(q) / np.linalg.norm(c)) for c in candidates.double().numpy() - mean
        ]
        best = max(s for s, a in zip(cosine, answers) if a)
        found.append(
            1
            + sum(s > best for s, a in zip(cosine, answers) if not a)
            + sum(s == best for s, a in zip(cosine, answers) if not a) / 2
        )
    return np.array(found)


@pytest.mark.parametrize("at_once", [2**24, 10])
def test_ranks_match_a_slow_reference(at_once, monkeypatch):
    monkeypatch.setattr(ranking, "AT_ONCE", at_once)
    torch.manual_seed(0)
    queries, candidates = torch.randn(23, 5), torch.randn(31, 5)
    right = torch.rand(23, 31) < 0.1
    right[torch.arange(23), torch.arange(23)] = True
    got = ranks(queries, candidates, lambda part: right[part])
    assert np.array_equal(got, slow_ranks(queries, candidates, right)) and got.max() > 5


def test_a_common_offset_and_a_length_change_nothing():
    torch.manual_seed(1)
    queries, candidates, own = torch.randn(20, 4), torch.randn(20, 4), torch.eye(20, dtype=torch.bool)
    plain = ranks(queries, candidates, lambda part: own[part])
    assert (
        np.array_equal(plain, ranks(8 * queries + 3, 8 * candidates + 3, lambda part: own[part]))
        and plain.std() > 3
    )
    longer = candidates.mean(0) + (queries - candidates.mean(0)) * torch.linspace(0.5, 2, 20)[:, None]
    assert np.array_equal(plain, ranks(longer, candidates, lambda part: own[part]))


def test_equal_similarities_get_the_middle_rank():
    collapsed = torch.ones(5, 3)
    own = torch.eye(5, dtype=torch.bool)
    assert ranks(collapsed, collapsed, lambda part: own[part]).tolist() == [3.0] * 5
    two = own | own.roll(1, 1)
    # half of the three wrong ones stand before
    assert ranks(collapsed, collapsed, lambda part: two[part]).tolist() == [2.5] * 5
    candidates = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert (
        ranks(candidates, candidates, lambda part: torch.eye(4, dtype=torch.bool)[part]).tolist() == [1.5] * 4
    )


def test_embeddings_that_are_not_finite_find_nothing():
    z = torch.eye(4)
    z[0] = torch.nan
    got = ranks(z, torch.eye(4), lambda part: torch.eye(4, dtype=torch.bool)[part])
    assert got.tolist() == [2.5, 1, 1, 1]
    got = ranks(torch.eye(4), z, lambda part: torch.eye(4, dtype=torch.bool)[part])
    assert got.tolist() == [4, 1, 1, 1], (
        "a right one that is not finite comes last, and the others do not suffer"
    )
    assert (
        ranks(
            torch.full((4, 4), torch.nan), torch.eye(4), lambda part: torch.eye(4, dtype=torch.bool)[part]
        ).tolist()
        == [2.5] * 4
    )


def test_metrics_by_hand():
    assert metrics(np.array([1, 1.5, 4, 10, 11])) == {
        "r1": 0.2,
        "r5": 0.6,
        "r10": 0.8,
        "median_rank": 4.0,
        "mrr": pytest.approx((1 + 1 / 1.5 + 1 / 4 + 1 / 10 + 1 / 11) / 5),
    }


@pytest.mark.parametrize(
    "candidates, right", [(6, [1]), (6, [2]), (7, [3, 1, 1]), (5, [5, 1]), (8, [2, 4, 1])]
)
def test_chance_is_the_mean_over_all_orders(candidates, right):
    pooled = []
    for count in right:
        pooled.append(
            [
                min(i for i, c in enumerate(order) if c < count) + 1
                for order in itertools.permutations(range(candidates))
            ]
        )
    got, pooled = ranking.chance(candidates, np.array(right)), np.concatenate(pooled)
    expected = metrics(pooled)
    assert got == {name: pytest.approx(value, abs=1e-12) for name, value in expected.items()}


def test_chance_of_one_right_in_many():
    got = ranking.chance(102, np.ones(102, int))
    assert (
        got["r1"] == pytest.approx(1 / 102)
        and got["r10"] == pytest.approx(10 / 102)
        and got["median_rank"] == 51.5
    )
    assert got["mrr"] == pytest.approx(np.mean(1 / np.arange(1, 103)))
    assert ranking.chance(3, np.ones(3, int))["r5"] == ranking.chance(3, np.ones(3, int))["r10"] == 1


def test_what_belongs_together():
    """Records: 0 (u, x), 1 (v, x), 2 (u, y), 3 (w, z): equal contents are one candidate and answer for each
    other, and only for partners."""
    a, b = torch.tensor([0, 1, 0, 2]), torch.tensor([0, 0, 1, 2])
    right = Right((a, b), (a, b))
    everything = slice(None)
    assert right.candidates(0).tolist() == [0, 1, 3] and right.candidates(1).tolist() == [0, 2, 3]
    assert right.direction(0)(everything).int().tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert right.direction(1)(everything).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert counts(right.direction(0), 4, 3).tolist() == [2, 1, 2, 1]
    # x is in classes 1 and 0; the fourth record asks for class -1, which is none
    classes = torch.tensor([0, 1, 2, -1]), torch.tensor([1, 0, 2, -1])
    right = Right((a, b), (a, b), classes)
    assert right.direction(0)(everything).int().tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert right.direction(1)(everything).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]]
    classes = torch.tensor([0, 1, 2, -1]), torch.tensor([1, 2, 2, 0])
    right = Right((a, b), (a, b), classes)
    assert right.direction(0)(everything).int().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1]], (
        "u is asked for once as 0 and once as 2"
    )
    assert right.direction(1)(everything).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 1]]
    kept = torch.tensor([False, True, True, True])
    some = right.among(kept)
    assert some.candidates(1).tolist() == [0, 1, 2] and some.direction(0)(everything).int().tolist() == [
        [1, 0, 0],
        [1, 1, 0],
        [0, 0, 1],
    ]


def test_numbering():
    known = {}
    assert numbered(["u", None, "v", "u"], known).tolist() == [0, -1, 1, 0] and numbered(
        ["w", "v"], known
    ).tolist() == [2, 1]
    assert first_of_each(torch.tensor([4, 1, 4, 0, 1])).tolist() == [0, 1, 3]
    assert first_of_each(torch.tensor([[4, 1], [4, 2], [4, 1], [0, -1], [0, -1]])).tolist() == [0, 1, 3]


def test_prototypes_are_means():
    means, kinds = prototypes(
        torch.tensor([[2.0, 0], [0, 5], [0, 1], [3, 3], [7, 7]]), torch.tensor([4, 4, 2, 2, -1])
    )
    assert kinds.tolist() == [2, 4] and means.tolist() == [[1.5, 2], [1, 2.5]]


def test_a_query_chooses_among_so_many_wrong_candidates():
    """Angles from the query: the right one is nearest to the first query and farthest from the second."""
    angles = torch.linspace(0, 2.5, 12)
    items = torch.stack([angles.cos(), angles.sin()], 1)
    items -= items.mean(0)  # directions are seen from the mean
    queries, order = items[[0, 0]], (items @ items[0] / items.norm(dim=1)).argsort(descending=True)
    right = torch.zeros(2, 12, dtype=torch.bool)
    right[0, order[0]] = right[1, order[-1]] = True
    found = lambda among: ranking.ranks(queries, items, lambda part: right[part], among).tolist()
    assert found(None) == found(11) == [1, 12]
    assert [found(among) for among in (1, 4, 10)] == [[1, 2], [1, 5], [1, 11]]
    # one of the middle: the better ones that are drawn, the same each time
    right[1] = right[1] & False | (torch.arange(12) == order[6])
    several = [found(5)[1] for _ in range(3)]
    assert several == several[:1] * 3 and 1 <= several[0] <= 6


def test_wrong_candidates_are_drawn_evenly():
    wrong = torch.ones(4000, 5, dtype=torch.bool)
    wrong[:, 2] = False
    chosen = ranking.drawn(wrong, 2, torch.Generator().manual_seed(0))
    assert (chosen.sum(1) == 2).all() and not chosen[:, 2].any()
    assert chosen.double().mean(0)[[0, 1, 3, 4]].tolist() == pytest.approx([0.5] * 4, abs=0.03)


def test_chance_where_queries_have_different_numbers_of_candidates():
    got = ranking.chance(np.array([2, 4]), np.array([1, 2]))
    # the first: rank 1 or 2; the second: 1 with 2/4, 2 with 2/4 * 2/3, 3 with 2/4 * 1/3
    assert got["r1"] == pytest.approx(0.5)
    assert got["r5"] == 1 and got["mrr"] == pytest.approx((3 / 4 + 1 / 2 + 1 / 6 + 1 / 18) / 2)
    assert ranking.chance(np.full(6, 7), np.full(6, 2)) == ranking.chance(7, np.full(6, 2))
