"""What is nearest to a query among the items of an index, which python -m vicjoint.embed made.

python -m vicjoint.search RUN --index photos.parquet --query dog.png --k 20
# a text among pictures: another branch asks, in the space where branches meet
python -m vicjoint.search RUN --index photos.parquet --query "a red circle" --branch b --html found.html

    from vicjoint.search import search
    hits = search("runs/image_text/1", "photos.parquet", "a red circle", branch="b")
    hits[0].item, hits[0].similarity

Similarity is the cosine of embeddings seen from the mean of the index (vicjoint.embeddings.neighbours). The
search is exact.
"""

import argparse
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from vicjoint.embeddings.found import Hit, Side, text_table, write_found
from vicjoint.embeddings.neighbours import neighbours
from vicjoint.embeddings.rows import OWN, rows_of
from vicjoint.embeddings.spaces import check_space
from vicjoint.embeddings.store import Index, read_index
from vicjoint.export import load_encoder
from vicjoint.exporting.reading import add_step_and_imports, imports_of
from vicjoint.files.guard import printable_lines
from vicjoint.files.paths import user_path
from vicjoint.files.write import write_json
from vicjoint.video import FRAME_RATE


class Searcher:
    """A trained encoder that asks an index, any number of times. The options are those of `search`."""

    def __init__(
        self,
        run: str | Path,
        index: str | Path | Index,
        branch: str | None = None,
        step: int | str | None = None,
        imports: Collection[str] | None = (),
    ):
        self.index = index if isinstance(index, Index) else read_index(index)
        made = self.index.metadata
        self.encoder = load_encoder(run, made["branch"] if branch is None else branch, step, imports)
        origin = self.encoder.origin
        facts = {
            "run": origin.folder,
            "step": origin.step,
            "model": origin.model,
            "branch": origin.branch,
            "space": made["space"],
            "dim": self.encoder.width(made["space"]),
        }
        check_space(made, facts, "query")
        name, rate = (
            origin.recipe.branches[origin.branch].modality["name"],
            made.get("frame_rate", FRAME_RATE),
        )
        self.asks = Side(name, self.encoder.reader.reads, rate)
        self.items = Side(made["modality"], made["reads"], rate)

    def __call__(self, query: str, k: int = 10) -> list[Hit]:
        """The k nearest items, the nearest first. Raises ValueError where the query cannot be read."""
        if k < 1:
            raise ValueError(f"k: {k}, expected at least one item.")
        asked = self.encoder.embed([query], space=self.index.metadata["space"]).numpy()
        similarity, numbers = (found[0] for found in neighbours(asked, self.index.matrix, k))
        kept = numbers >= 0
        rows = rows_of(self.index, numbers[kept])
        return [hit_of(rank, value, row) for rank, (value, row) in enumerate(zip(similarity[kept], rows), 1)]


def search(
    run: str | Path,
    index: str | Path | Index,
    query: str,
    branch: str | None = None,
    k: int = 10,
    step: int | str | None = None,
    imports: Collection[str] | None = (),
) -> list[Hit]:
    """The k items of an index that are nearest to a query, the nearest first. run: a run folder or an export.
    query: a path or a text, whatever the branch reads. branch: that of the query; None: the index's own.
    step, imports: as in `vicjoint.load_encoder`. Raises ValueError where the query cannot be read, and where
    run, branch and index do not share a space. `Searcher` asks several times."""
    return Searcher(run, index, branch, step, imports)(query, k)


def hit_of(rank: int, similarity: float, row: dict) -> Hit:
    columns = {name: value for name, value in row.items() if name not in OWN}
    return Hit(
        rank, float(similarity), row["item"], row.get("start_seconds"), row.get("end_seconds"), columns
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vicjoint.search", description="Find what is nearest to a query in an index."
    )
    parser.add_argument("run", type=user_path, help="the run folder or export that made the index")
    parser.add_argument(
        "--index", type=user_path, required=True, metavar="FILE", help="of python -m vicjoint.embed"
    )
    parser.add_argument(
        "--query", required=True, metavar="FILE or TEXT", help="a path or a text, whatever the branch reads"
    )
    parser.add_argument("--branch", metavar="NAME", help="of the query; the index's own is the default")
    parser.add_argument("--k", type=int, default=10, metavar="N", help="how many items (default 10)")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write what was found there")
    parser.add_argument(
        "--html", type=user_path, metavar="FILE", help="and a page with pictures, clips and sounds"
    )
    add_step_and_imports(
        parser, "of the run's checkpoints the one that made the index; the last one is the default"
    )
    options = parser.parse_args(arguments)
    try:
        imports = imports_of(options)
        searcher = Searcher(options.run, options.index, options.branch, options.step, imports)
        hits = searcher(options.query, options.k)
        print(text_table(hits, shutil.get_terminal_size((160, 24)).columns))
        if options.json:
            write_json(options.json, {"query": options.query, "hits": [hit.as_json() for hit in hits]})
            print(f"results: {options.json}")
        if options.html:
            write_found(options.html, options.query, searcher.asks, hits, searcher.items)
            print(f"page: {options.html}")
    except (ValueError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
