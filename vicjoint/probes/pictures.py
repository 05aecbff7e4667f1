"""Some queries of a retrieval with what they found first, for the report: where the candidates are images or
clips."""

import numpy as np
import torch

from vicjoint import distributed
from vicjoint.data import READ_ERRORS
from vicjoint.files.guard import printable
from vicjoint.parts import Features, Items
from vicjoint.probes import ranking

SHOWN = 5  # candidates of a query
TITLE = 160  # characters


def pictures_of(
    z: dict, right: ranking.Right, sides: tuple[Items, Items], features: Features, most: int
) -> dict[str, np.ndarray]:
    """{query uint8 [n, H, W, 3] (where queries are pictures too), neighbours [n, K, H, W, 3], right bool [n,
    K], title, good, captions (with {a} and {b} for the branches' names)} of up to `most` evenly spaced
    queries, from the direction whose candidates are pictures, a to b before b to a; empty where neither's
    are. `z`: {direction: (embeddings of the items that ask, of those to be found)}."""

    def picture(side: int, item: int) -> np.ndarray | None:
        place, number = int(sides[side].places[item]), int(sides[side].numbers[item])
        return features.picture("ab"[side], "test", place, number)

    def name(side: int, item: int) -> str:
        return printable(sides[side].titles[item])[:TITLE]

    try:
        of = next((of for of in (0, 1) if picture(1 - of, 0) is not None), None)
        if of is None:
            return {}
        queries, items = z[("a_to_b", "b_to_a")[of]]
        kept = right.candidates(1 - of)
        chosen = torch.from_numpy(
            np.linspace(0, len(queries) - 1, min(most, len(queries))).round().astype(int)
        )
        near_to, candidates = ranking.centred(
            queries[chosen.to(queries.device)], items[kept.to(items.device)]
        )
        similarity = near_to @ candidates.T
        near = similarity.nan_to_num(nan=-torch.inf).topk(min(SHOWN, len(candidates)), 1).indices.cpu()
        answers, near = right.direction(of)(chosen).gather(1, near).numpy(), kept[near]
        own = [picture(of, q) for q in chosen]
        found = {
            "neighbours": np.stack([[picture(1 - of, c) for c in row] for row in near]),
            "right": answers,
            "good": answers[:, 0],
            "title": np.array(
                [f"{name(of, q)}; first: {name(1 - of, row[0])}" for q, row in zip(chosen, near)], dtype=str
            ),
            "captions": np.array([f"query, {{{'ab'[of]}}}", f"retrieved, {{{'ba'[of]}}}"]),
        }
        return found | ({"query": np.stack(own)} if own[0] is not None else {})
    except READ_ERRORS as error:
        distributed.say(f"evaluation shows no pictures: {printable(str(error))}")
        return {}
