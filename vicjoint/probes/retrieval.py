"""Retrieval between the two modalities of a pair, both ways, on the test split.

    evaluate: {probes: [{name: retrieval}, {name: zero_shot, prompts: ["a photo of a {}"]}]}

Embeddings z are compared by cosine similarity, seen from the mean of the candidates (vicjoint.probes.ranking
says why).
"""

# N items, E embedding

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vicjoint.parts import Probe
from vicjoint.probes import ranking
from vicjoint.probes.frozen import Evaluating, Reading, both_records, embed, evenly, represent, zero_or_one
from vicjoint.probes.linear_map import LinearMap
from vicjoint.probes.pictures import pictures_of
from vicjoint.registry import register

DIRECTIONS = ("a_to_b", "b_to_a")


@dataclass
class Side:
    """The test items of one branch: {row: embeddings [N, E]}, and of each item its record's place, its number
    among the values of the record's cell, the number of its content (equal for equal texts or files), and its
    class (-1: none)."""

    rows: dict[str, Tensor]
    places: Tensor
    numbers: Tensor
    contents: Tensor
    classes: Tensor

    def __getitem__(self, kept: Tensor) -> "Side":
        return Side(
            {row: z[kept.to(z.device)] for row, z in self.rows.items()},
            *(getattr(self, name)[kept] for name in ("places", "numbers", "contents", "classes")),
        )


@register("probe", "retrieval")
class Retrieval(Probe):
    """Does the embedding of one modality find its partner among those of the other? Every test item of branch
    a is a query among all test items of branch b, and the other way. A cell of several values (five captions
    of a picture) is several items: as candidates any of them is right, as queries each stands for itself. A
    content that occurs several times (the same caption, the same file) is one candidate, right for the
    queries of every record that holds it. With a `key` of the pair every candidate of the query's class is
    right.

    only: a column of 0 and 1, of tables that list wrong couples as well: only records with 1 there count as
    pairs; null: all do. limit: at most so many test records, evenly spaced (null: all). linear_map: training
    records for the row of that name (0: no such row). pictures: queries shown in the report.

    Metrics, for a_to_b and b_to_a: r1, r5, r10: share of queries with a right answer among the first;
    median_rank, mrr: of the best right answer among the wrong ones, where equal similarity gets the middle
    rank; with a key, class_prototype: share of queries whose class has the nearest mean embedding of the
    candidates.

    Rows: model; random_init: the same encoders before training; linear_map: ridge between 200 principal
    components of the modalities' simple features, fitted on training pairs (vicjoint.probes.linear_map);
    where both are of one kind, under its name (pixels) these features themselves; chance: the exact
    expectation of a random order.
    """

    all_pairs = True  # called once for each two branches of a run

    def __init__(
        self, limit: int | None = None, linear_map: int = 2000, pictures: int = 8, only: str | None = None
    ):
        if limit is not None and limit < 2:
            raise ValueError(
                f"retrieval: limit is {limit}, expected 2 test records or more, or null for all of them."
            )
        if linear_map < 0 or pictures < 0:
            raise ValueError(
                f"retrieval needs linear_map and pictures of 0 or more, got {linear_map} and {pictures}."
            )
        self.limit, self.linear_map, self.pictures, self.only = limit, linear_map, pictures, only
        self._fixed: list[tuple] = []  # (pair, its rows that do not change while the model trains)

    def misses(self, source, pair) -> str | None:
        if not hasattr(pair, "plain_all"):
            raise ValueError(
                "evaluate.probes: 'retrieval' compares two modalities of a record, which this pair does not"
                " give. Use pair: {name: cross_modal}, or leave it out."
            )
        if self.only and not len(self._places(source.test, None)):
            raise ValueError(
                f"evaluate.probes: retrieval: no test record has 1 in '{self.only}'. Correct `only`, or leave"
                " it out."
            )
        return None

    def _places(self, records: list[dict], limit: int | None) -> np.ndarray:
        pairs = np.array(
            [
                i
                for i, r in enumerate(records)
                if self.only is None or zero_or_one(r, self.only, "retrieval") == 1
            ],
            dtype=int,
        )
        return pairs[evenly(len(pairs), limit)]

    def __call__(self, model, untrained, source, pair, device):
        """Raises ValueError where fewer than two test records can be read by both branches."""
        known = next((rows for of, rows in self._fixed if of is pair), None)
        with Evaluating(model, untrained):
            encoders = {"model": (embed(model, "a"), embed(model, "b"))}
            if known is None:
                encoders["random_init"] = embed(untrained, "a"), embed(untrained, "b")
                encoders["simple"] = model.a.modality.simple_features, model.b.modality.simple_features
            a, b = self._sides(encoders, source, pair, device)
            rows = {
                row: {"a_to_b": (a.rows[row], b.rows[row]), "b_to_a": (b.rows[row], a.rows[row])}
                for row in a.rows
                if row in b.rows
            }
            if simple := rows.pop("simple", None):
                rows |= self._floors(model, simple, source, pair, device)
        right = right_of(a, b, two_tables(source))
        found = {
            f"{row}/{metric}": value
            for row, both in rows.items()
            for metric, value in score(both, right, (a, b)).items()
        }
        if known is None:
            known = {key: value for key, value in found.items() if not key.startswith("model/")}
            known |= {f"chance/{metric}": value for metric, value in chance(right, (a, b)).items()}
            self._fixed.append((pair, known))
        yield from (found | known).items()
        if self.pictures and (
            shown := pictures_of(rows["model"], right, (a, b), (source, pair), self.pictures)
        ):
            yield "pictures", shown

    def _sides(self, encoders: dict, source, pair, device) -> tuple[Side, Side]:
        """Both branches' test items, of the records that both can read; one numbering of classes for both."""
        sides, classes = [], {}
        for i, branch in enumerate("ab"):
            _, test = both_records(source, pair.workers, branch)
            places = self._places(test.records, self.limit)
            reading = Reading(pair, branch, every=True)
            rows, where = represent(
                {row: both[i] for row, both in encoders.items()}, test, reading, places, device
            )
            numbers = number_within(where)
            contents, keys = contents_and_keys(pair, branch, test.records, where)
            sides.append(
                Side(rows, where, numbers, ranking.numbered(contents, {}), ranking.numbered(keys, classes))
            )
        a, b = sides
        if not two_tables(source):
            a, b = a[torch.isin(a.places, b.places)], b[torch.isin(b.places, a.places)]
        if min(len(a.places.unique()), len(b.places.unique())) < 2:
            raise ValueError(
                "retrieval: fewer than two test records can be read by both branches, so there is nothing to"
                " choose among."
            )
        return a, b

    def _floors(self, model, simple: dict, source, pair, device) -> dict[str, dict]:
        """The rows made of simple features, `simple` {direction: (queries, candidates)}."""
        names, widths = (
            {branch.modality.baseline for branch in (model.a, model.b)},
            {z.shape[1] for z in simple["a_to_b"]},
        )
        rows = {names.pop(): simple} if len(names) == len(widths) == 1 else {}
        if self.linear_map:
            floor = self._fit_linear_map(model, source, pair, device)
            rows["linear_map"] = {direction: getattr(floor, direction)(*z) for direction, z in simple.items()}
        return rows

    def _fit_linear_map(self, model, source, pair, device) -> LinearMap:
        """Fitted on training records that both branches can read; with a key, on a random b of equal key for
        every a."""
        sides, classes = [], {}
        for branch, of in (("a", model.a), ("b", model.b)):
            train, _ = both_records(source, pair.workers, branch)
            places = self._places(train.records, self.linear_map)
            rows, where = represent(
                {"simple": of.modality.simple_features}, train, Reading(pair, branch), places, device
            )
            contents, keys = contents_and_keys(pair, branch, train.records, where)
            sides.append(
                (
                    rows["simple"],
                    {p: i for i, p in enumerate(where.tolist())},
                    keys,
                    ranking.numbered(contents, {}),
                    ranking.numbered(keys, classes),
                )
            )
        (a, places_a, keys_a, contents_a, classes_a), (b, places_b, keys_b, contents_b, classes_b) = sides
        if keys_a[0] is None:
            chosen = [(i, places_b[p]) for p, i in places_a.items() if p in places_b]
        else:
            rng, of_key = np.random.default_rng(0), {}
            for i, key in enumerate(keys_b):
                of_key.setdefault(key, []).append(i)
            chosen = [(i, int(rng.choice(of_key[key]))) for i, key in enumerate(keys_a) if key in of_key]
        i, j = torch.tensor(chosen).T
        pairs = contents_a[i], contents_b[j]
        return LinearMap(
            a[i.to(a.device)], b[j.to(b.device)], ranking.Right(pairs, pairs, (classes_a[i], classes_b[j]))
        )


def two_tables(source) -> bool:
    return getattr(source, "second", None) is not None


def number_within(places: Tensor) -> Tensor:
    """0, 1, ... of each item among the items of the same place, for places [N] that stand together."""
    first = torch.cat([torch.ones(1, dtype=torch.bool), places[1:] != places[:-1]])
    starts = torch.where(first, torch.arange(len(places)), 0).cummax(0).values
    return torch.arange(len(places)) - starts


def contents_and_keys(pair, branch: str, records: list[dict], where: Tensor) -> tuple[list, list]:
    """(content, key) of each item; where [N]: the places of their records, items of one place together."""
    of = {p: (pair.contents_of(records[p], branch), pair.key_of(records[p])) for p in where.unique().tolist()}
    return [of[p][0][n] for p, n in zip(where.tolist(), number_within(where).tolist())], [
        of[p][1] for p in where.tolist()
    ]


def right_of(a: Side, b: Side, separate: bool) -> ranking.Right:
    """`separate`: the sides come from different tables, and only classes say what belongs together."""
    together = (torch.empty(0, dtype=torch.long),) * 2
    if not separate:
        of_b = {}
        for place, content in zip(b.places.tolist(), b.contents.tolist()):
            of_b.setdefault(place, []).append(content)
        pairs = [(u, v) for place, u in zip(a.places.tolist(), a.contents.tolist()) for v in of_b[place]]
        together = tuple(torch.tensor(pairs).T)
    return ranking.Right((a.contents, b.contents), together, (a.classes, b.classes))


def score(
    z: dict[str, tuple[Tensor, Tensor]], right: ranking.Right, sides: tuple[Side, Side]
) -> dict[str, float]:
    """All metrics of one row; z: {direction: (embeddings of the items that ask [Q, E], of those to be found
    [N, E])}."""
    found = {}
    for of, direction in enumerate(DIRECTIONS):
        queries, items = z[direction]
        answered, _ = answerable(right, of)
        queries, rows = queries[answered.to(queries.device)], right.direction(of)
        ranks = ranking.ranks(
            queries, items[right.candidates(1 - of).to(items.device)], lambda part: rows(answered[part])
        )
        found |= {f"{direction}_{metric}": value for metric, value in ranking.metrics(ranks).items()}
        if (sides[of].classes >= 0).any():
            distinct = ranking.first_of_each(torch.stack([sides[1 - of].contents, sides[1 - of].classes], 1))
            means, kinds = ranking.prototypes(
                items[distinct.to(items.device)], sides[1 - of].classes[distinct]
            )
            own = sides[of].classes[answered][:, None] == kinds
            ranks = ranking.ranks(queries, means, lambda part: own[part])
            found[f"{direction}_class_prototype"] = float((ranks <= 1).mean())
    return found


def answerable(right: ranking.Right, of: int) -> tuple[Tensor, np.ndarray]:
    """(the queries that have a right candidate, how many each has). Raises ValueError where there is none."""
    count = ranking.counts(right.direction(of), len(right.contents[of]), len(right.candidates(1 - of)))
    if not count.any():
        raise ValueError(
            "retrieval: no test sample of one branch has a partner of equal key in the other. Check the"
            " pair's key."
        )
    return torch.from_numpy(np.flatnonzero(count)), count[count > 0]


def chance(right: ranking.Right, sides: tuple[Side, Side]) -> dict[str, float]:
    found = {}
    for of, direction in enumerate(DIRECTIONS):
        _, count = answerable(right, of)
        found |= {
            f"{direction}_{metric}": value
            for metric, value in ranking.chance(len(right.candidates(1 - of)), count).items()
        }
        if (sides[of].classes >= 0).any():
            kinds = sides[1 - of].classes.unique()
            found[f"{direction}_class_prototype"] = 1 / int((kinds >= 0).sum())
    return found
