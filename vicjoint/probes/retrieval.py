"""Retrieval between the two modalities of a pair, both ways, on the test split.

    evaluate: {probes: [{name: retrieval}, {name: zero_shot, prompts: ["a photo of a {}"]}]}

Embeddings z are compared by cosine similarity, seen from the mean of the candidates (vicjoint.probes.ranking
says why).
"""

# N items, E embedding

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vicjoint.parts import EvaluationData, Features, Items, Metric, Probe, Record, Split, Want
from vicjoint.probes import ranking
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import class_of, evenly, of_others, zero_or_one
from vicjoint.probes.linear_map import LinearMap
from vicjoint.probes.pictures import pictures_of
from vicjoint.registry import register

DIRECTIONS = ("a_to_b", "b_to_a")


@dataclass
class Group:
    """The test items of one branch, and of each the number of its content (equal for equal texts or files)
    and of its class (-1: none)."""

    items: Items
    contents: Tensor
    classes: Tensor

    def only(self, kept: Tensor) -> "Group":
        """Those that `kept` [N] marks."""
        return Group(self.items.only(kept), self.contents[kept], self.classes[kept])


@register("probe", "retrieval")
class Retrieval(Probe):
    """Does the embedding of one modality find its partner among those of the other? Every test item of branch
    a is a query among all test items of branch b, and the other way. A cell of several values (five captions
    of a picture) is several items: as candidates any of them is right, as queries each stands for itself. A
    content that occurs several times (the same caption, the same file) is one candidate, right for the
    queries of every record that holds it. With a `key` of the pair every candidate of the query's class is
    right.

    only: a column of 0 and 1, of tables that list wrong couples as well: only records with 1 there count as
    pairs; null: all do. replicates: a column; records with equal values in it are replicates of one thing:
    the mean of their embeddings is one item of each branch, and the mean of their simple features; a record
    without a value stands for itself. among: each query chooses among its right candidates and so many wrong
    ones, drawn at random, the same for all rows and runs; null: all wrong ones. limit: at most so many test
    records, evenly spaced (null: all). linear_map: training records for the row of that name (0: no such
    row). pictures: queries shown in the report.

    Metrics, for a_to_b and b_to_a: r1, r5, r10: share of queries with a right answer among the first;
    median_rank, mrr: of the best right answer among the wrong ones, where equal similarity gets the middle
    rank; with a key, class_prototype: share of queries whose class has the nearest mean embedding of the
    candidates.

    Rows: model; random_init: the same encoders before training; linear_map: ridge between 200 principal
    components of the modalities' simple features, fitted on training pairs (vicjoint.probes.linear_map);
    where both are of one kind, under its name (pixels) these features themselves; chance: the exact
    expectation of a random order. Where the pair gives a condition, shuffled_condition: the same predictions
    from branch a with the condition of another item, drawn once for all.
    """

    needs = frozenset({"both"})
    scope = "every_two"
    refusal = (
        "evaluate.probes: 'retrieval' compares two modalities of a record, which this pair does not give. Use"
        " pair: {name: cross_modal}, or leave it out."
    )
    explains = {
        "r1": Metric("R@1: share of queries of which a right answer ranks first"),
        "r5": Metric("R@5: share of queries of which a right answer is among the first five"),
        "r10": Metric("R@10: the same for the first ten"),
        "median_rank": Metric(
            "median rank of the best right answer among all distinct candidates; equal similarities share the"
            " middle rank",
            "lower",
        ),
        "mrr": Metric("mean of 1 / rank of the best right answer"),
        "class_prototype": Metric("share of queries whose class has the nearest mean embedding"),
    }

    def __init__(
        self,
        limit: Annotated[int, Field(ge=2)] | None = None,
        linear_map: Annotated[int, Field(ge=0)] = 2000,
        pictures: Annotated[int, Field(ge=0)] = 8,
        only: str | None = None,
        replicates: str | None = None,
        among: Annotated[int, Field(ge=1)] | None = None,
    ):
        self.limit, self.linear_map, self.pictures, self.only = limit, linear_map, pictures, only
        self.replicates, self.among = replicates, among

    def misses(self, data: EvaluationData) -> str | None:
        if self.only and not len(self._places(data.records("test"), None)):
            raise ValueError(
                f"evaluate.probes: retrieval: no test record has 1 in '{self.only}'. Correct `only`, or leave"
                " it out."
            )
        if self.replicates and not any(
            class_of(r, self.replicates) is not None for side in "ab" for r in data.records("test", side)
        ):
            raise ValueError(
                f"evaluate.probes: retrieval: no test record has a value in '{self.replicates}'. Correct"
                " `replicates`, or leave it out."
            )
        return None

    def _places(self, records: Sequence[Record], limit: int | None) -> np.ndarray:
        """The records that count as pairs, at most `limit` of them."""
        is_pair = lambda r: self.only is None or zero_or_one(r, self.only, "retrieval") == 1
        pairs = np.array([i for i, record in enumerate(records) if is_pair(record)], dtype=int)
        return pairs[evenly(len(pairs), limit)]

    def _want(self, data: EvaluationData, side: str, split: Split) -> Want:
        """Of the test split the items, of the training split what the floor is fitted on."""
        places = self._places(data.records(split, side), self.limit if split == "test" else self.linear_map)
        if split == "train":
            return Want(side, split, places, ("simple",))
        return Want(side, split, places, space="embedding", every=True)

    def wants(self, data: EvaluationData) -> list[Want]:
        splits = ("test", "train") if self.linear_map else ("test",)
        found = [self._want(data, side, split) for split in splits for side in "ab"]
        if data.pair.conditions:  # y, for other predictions
            found.append(replace(found[0], rows=("model",), space="representation"))
        return found

    def measure(self, features: Features) -> Iterator[tuple[str, Any]]:
        """Raises ValueError where fewer than two test records can be read by both branches, or a query has
        fewer wrong candidates than it is to choose among."""
        a, b = groups_of(features, features.wants[:2])
        if features.data.pair.conditions:
            a, b = with_shuffled(features, a, b)
        if self.replicates:
            a, b = (
                averaged(x, [class_of(r, self.replicates) for r in features.data.records("test", side)])
                for x, side in ((a, "a"), (b, "b"))
            )
        right = right_of(a, b, features.data.source.second is not None)
        rows = {
            row: {"a_to_b": (z, b.items.rows[row]), "b_to_a": (b.items.rows[row], z)}
            for row, z in a.items.rows.items()
            if row in b.items.rows
        }
        score_of = lambda row, z: {
            f"{row}/{m}": value for m, value in score(z, right, (a, b), self.among).items()
        }

        def fixed() -> dict[str, float]:
            floors = self._floors(features, rows["simple"]) if "simple" in rows else {}
            found = score_of("random_init", rows["random_init"])
            for row, z in floors.items():
                found |= score_of(row, z)
            return found | {f"chance/{m}": value for m, value in chance(right, (a, b), self.among).items()}

        changing = [row for row in ("model", "shuffled_condition") if row in rows]
        yield from (m for row in changing for m in score_of(row, rows[row]).items())
        yield from features.once("fixed rows", fixed).items()
        if self.pictures and (
            shown := pictures_of(rows["model"], right, (a.items, b.items), features, self.pictures)
        ):
            yield "pictures", shown

    def _floors(self, features: Features, simple: dict) -> dict[str, dict]:
        """The rows made of simple features, `simple` {direction: (queries, candidates)}."""
        names = {features.baseline(side) for side in "ab"}
        widths = {z.shape[1] for z in simple["a_to_b"]}
        rows = {names.pop(): simple} if len(names) == len(widths) == 1 else {}
        if self.linear_map:
            floor = self._fit_linear_map(features)
            rows["linear_map"] = {
                "a_to_b": floor.a_to_b(*simple["a_to_b"]),
                "b_to_a": floor.b_to_a(*simple["b_to_a"]),
            }
        return rows

    def _fit_linear_map(self, features: Features) -> LinearMap:
        """Fitted on training records that both branches can read; with a key, on a random b of equal key for
        every a."""
        a, b = (features.items(want) for want in features.wants[2:4])
        classes: dict = {}
        (contents_a, classes_a), (contents_b, classes_b) = (
            (ranking.numbered(of.contents, {}), ranking.numbered(of.keys, classes)) for of in (a, b)
        )
        if a.keys[0] is None:
            at = {place: j for j, place in enumerate(b.places.tolist())}
            chosen = [(i, at[place]) for i, place in enumerate(a.places.tolist()) if place in at]
        else:
            rng, of_key = np.random.default_rng(0), {}
            for j, key in enumerate(b.keys):
                of_key.setdefault(key, []).append(j)
            chosen = [(i, int(rng.choice(of_key[key]))) for i, key in enumerate(a.keys) if key in of_key]
        i, j = torch.tensor(chosen).T
        pairs = contents_a[i], contents_b[j]
        x, y = a.rows["simple"], b.rows["simple"]
        right = ranking.Right(pairs, pairs, (classes_a[i], classes_b[j]))
        return LinearMap(x[i.to(x.device)], y[j.to(y.device)], right)


def groups_of(features: Features, wants: Sequence[Want]) -> tuple[Group, Group]:
    """Both branches' test items, of the records that both can read; one numbering of classes for both. wants:
    for a and for b. Raises ValueError where fewer than two records can be read."""
    classes: dict = {}
    groups = []
    for want in wants:
        items = features.items(want)
        contents, keys = ranking.numbered(items.contents, {}), ranking.numbered(items.keys, classes)
        groups.append(Group(items, contents, keys))
    a, b = groups
    if features.data.source.second is None:
        a, b = (x.only(torch.isin(x.items.places, y.items.places)) for x, y in ((a, b), (b, a)))
    if min(len(group.items.places.unique()) for group in (a, b)) < 2:
        raise ValueError(
            "retrieval: fewer than two test records can be read by both branches, so there is nothing to"
            " choose among."
        )
    return a, b


def with_shuffled(features: Features, a: Group, b: Group) -> tuple[Group, Group]:
    """With a row for a's predictions by the conditions of other items, beside b as it is."""
    every = features.items(features.wants[-1])
    kept = torch.isin(every.places, a.items.places)
    of_a = every if kept.all() else every.only(kept)
    y, told = of_a.rows["model"], of_a.conditions
    assert told is not None
    predicted = features.embed("model", "a", [y], told=[told[of_others(len(told))]])
    rows = {"a": predicted, "b": b.items.rows["model"]}
    return tuple(
        replace(x, items=replace(x.items, rows=x.items.rows | {"shuffled_condition": rows[side]}))
        for x, side in ((a, "a"), (b, "b"))
    )


def averaged(group: Group, names: Sequence[Any]) -> Group:
    """One item, their mean, of all whose records have an equal name; names: of all records, None: a record
    that stands for itself. Raises ValueError where they are of several classes."""
    first: dict[Any, int] = {}
    head = [place if name is None else first.setdefault(name, place) for place, name in enumerate(names)]
    places, at, of = np.unique(
        np.array(head)[group.items.places.numpy()], return_index=True, return_inverse=True
    )
    of, times = torch.from_numpy(of), torch.from_numpy(np.bincount(of))
    rows = {}
    for row, x in group.items.rows.items():
        total = torch.zeros(len(places), x.shape[1], dtype=torch.float64)
        rows[row] = (total.index_add(0, of, x.double().cpu()) / times[:, None]).to(x)
    contents, classes = ([set() for _ in places] for _ in range(2))
    for number, content, kind in zip(of.tolist(), group.contents.tolist(), group.classes.tolist()):
        contents[number].add(content)
        classes[number].add(kind)
    if mixed := [names[place] for place, kinds in zip(places, classes) if len(kinds) > 1]:
        raise ValueError(
            f"retrieval: replicates: the records of {mixed[0]!r:.60} do not all have the same key of the"
            " pair. Name a column whose values lie within one key."
        )
    if len(places) < 2:
        raise ValueError(
            "retrieval: replicates: all test records are replicates of one thing, so there is nothing to"
            " choose among."
        )
    merged = {
        name: [getattr(group.items, name)[i] for i in at]
        for name in ("contents", "keys", "titles", "items", "seconds")
    }
    items = replace(
        group.items, rows=rows, places=torch.from_numpy(places), numbers=group.items.numbers[at], **merged
    )
    return Group(items, ranking.numbered(list(map(frozenset, contents)), {}), group.classes[at])


def right_of(a: Group, b: Group, separate: bool) -> ranking.Right:
    """`separate`: the sides come from different tables, and only classes say what belongs together."""
    together = (torch.empty(0, dtype=torch.long),) * 2
    if not separate:
        of_b = {}
        for place, content in zip(b.items.places.tolist(), b.contents.tolist()):
            of_b.setdefault(place, []).append(content)
        pairs = [
            (u, v) for place, u in zip(a.items.places.tolist(), a.contents.tolist()) for v in of_b[place]
        ]
        together = tuple(torch.tensor(pairs).T)
    return ranking.Right((a.contents, b.contents), together, (a.classes, b.classes))


def score(
    z: dict[str, tuple[Tensor, Tensor]],
    right: ranking.Right,
    sides: tuple[Group, Group],
    among: int | None = None,
) -> dict[str, float]:
    """All metrics of one row; z: {direction: (embeddings of the items that ask [Q, E], of those to be found
    [N, E])}. among: the wrong candidates of a query; None: all."""
    found = {}
    for of, direction in enumerate(DIRECTIONS):
        queries, items = z[direction]
        answered, _ = answerable(right, of, among)
        queries, rows = queries[answered.to(queries.device)], right.direction(of)
        ranks = ranking.ranks(
            queries,
            items[right.candidates(1 - of).to(items.device)],
            lambda part: rows(answered[part]),
            among,
        )
        records = sides[of].items.places[answered].numpy()
        every = with_intervals(lambda n: ranking.metrics(ranks[n]), records)
        found |= {f"{direction}_{metric}": value for metric, value in every.items()}
        if (sides[of].classes >= 0).any():
            distinct = ranking.first_of_each(torch.stack([sides[1 - of].contents, sides[1 - of].classes], 1))
            means, kinds = ranking.prototypes(
                items[distinct.to(items.device)], sides[1 - of].classes[distinct]
            )
            own = sides[of].classes[answered][:, None] == kinds
            of_class = ranking.ranks(queries, means, lambda part: own[part])
            share = lambda n: {f"{direction}_class_prototype": float((of_class[n] <= 1).mean())}
            found |= with_intervals(share, records)
    return found


def answerable(right: ranking.Right, of: int, among: int | None = None) -> tuple[Tensor, np.ndarray]:
    """(the queries that have a right candidate, how many each has). Raises ValueError where there is none, or
    fewer wrong ones than `among`."""
    candidates = len(right.candidates(1 - of))
    count = ranking.counts(right.direction(of), len(right.contents[of]), candidates)
    if not count.any():
        raise ValueError(
            "retrieval: no test sample of one branch has a partner of equal key in the other. Check the"
            " pair's key."
        )
    if among is not None and among > (fewest := int(candidates - count.max())):
        raise ValueError(
            f"retrieval: among: {among} wrong candidates are asked for, and a query of {DIRECTIONS[of]} has"
            f" {fewest}. Lower it, or leave it out."
        )
    return torch.from_numpy(np.flatnonzero(count)), count[count > 0]


def chance(right: ranking.Right, sides: tuple[Group, Group], among: int | None = None) -> dict[str, float]:
    found = {}
    for of, direction in enumerate(DIRECTIONS):
        _, count = answerable(right, of, among)
        candidates = len(right.candidates(1 - of)) if among is None else among + count
        found |= {
            f"{direction}_{metric}": value for metric, value in ranking.chance(candidates, count).items()
        }
        if (sides[of].classes >= 0).any():
            kinds = sides[1 - of].classes.unique()
            found[f"{direction}_class_prototype"] = 1 / int((kinds >= 0).sum())
    return found
