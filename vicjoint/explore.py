"""A page to look around in embeddings: a map, what each item is, and what is nearest to it.

python -m vicjoint.explore photos.parquet --to explorer       # explorer/index.html, opened by a double click
# both branches of a model (embedded with --space embedding), neighbours of the same class marked as right
python -m vicjoint.explore photos.parquet captions.parquet --to explorer --right class
"""

import argparse
import sys

from vicjoint.embeddings.explorer import MOST, cloud_of, write_explorer
from vicjoint.embeddings.spaces import check_space
from vicjoint.embeddings.store import Index, read_index
from vicjoint.files.guard import printable_lines
from vicjoint.files.paths import user_path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vicjoint.explore",
        description="Write a page to look around in embeddings. It opens offline.",
    )
    parser.add_argument(
        "index", type=user_path, nargs="+", help="a file of python -m vicjoint.embed; several: of one space"
    )
    parser.add_argument("--to", type=user_path, required=True, metavar="FOLDER", help="for the page")
    parser.add_argument(
        "--most",
        type=int,
        default=MOST,
        metavar="N",
        help=f"items of an index that are shown, else a random sample of them (default {MOST})",
    )
    parser.add_argument(
        "--right", metavar="COLUMN", help="mark neighbours as right where they hold the same in this column"
    )
    options = parser.parse_args(arguments)
    try:
        indexes = [read_index(path) for path in options.index]
        check_together(indexes)
        page = write_explorer(options.to, [cloud_of(index, options.most) for index in indexes], options.right)
        print(f"explorer: {page}")
    except (ValueError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return 2
    return 0


def check_together(indexes: list[Index]) -> None:
    """Raises SpaceError where the embeddings of some indexes cannot be compared."""
    for index in indexes[1:]:
        check_space(indexes[0].metadata, index.metadata, f"{index.path} beside {indexes[0].path}")


if __name__ == "__main__":
    sys.exit(main())
