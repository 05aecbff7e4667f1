"""Files in, vectors out.

    python -m vicjoint.embed RUN_OR_EXPORT DATA... --to out.parquet
    python -m vicjoint.embed runs/image_text/1 /data/pictures --to pictures.parquet
    python -m vicjoint.embed runs/image_text/1 captions.csv --branch b --column caption --to captions.parquet
    python -m vicjoint.embed runs/video_faces/1 films/ --every 0.5 --to films.parquet
    python -m vicjoint.embed runs/video_rollout/1 films/ --surprise --to films.parquet

DATA: files, folders, tables (csv, tsv, json, jsonl, parquet), tar files of pictures, .txt files with a text a
line. What cannot be read is left out, and named in out.parquet.bad.jsonl. Stopped or killed, the same command
goes on.
Exit code 0: done; 1: nothing could be read, or reading came to no end; 2: wrong arguments; 75: stopped.
"""

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import vicjoint
from vicjoint.data import ReaderError
from vicjoint.data.readers import stop_signals
from vicjoint.embeddings.encoder import SPACES, RepresentationModel
from vicjoint.embeddings.items import Data, cell_of
from vicjoint.embeddings.store import NothingRead, Store
from vicjoint.embeddings.surprises import Surprises
from vicjoint.embeddings.work import Job, progress, work
from vicjoint.export import load_encoder
from vicjoint.exporting.reading import add_step_and_imports, imports_of
from vicjoint.files.guard import printable_lines
from vicjoint.files.paths import user_path
from vicjoint.recipe import RecipeError
from vicjoint.registry import ComponentError
from vicjoint.tokens import token_encoder
from vicjoint.training.build import pick_device
from vicjoint.training.folder import only_one

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 75


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        with on_signals():
            embed(options)
    except (RecipeError, ComponentError, ValueError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return WRONG
    except (ReaderError, NothingRead) as error:
        print(f"stopped: {printable_lines(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("stopped: the same command goes on from the last whole part.", file=sys.stderr)
        return STOPPED
    return DONE


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m vicjoint.embed", description="Write the embeddings of files or texts into a table."
    )
    add = made.add_argument
    add("run", metavar="RUN_OR_EXPORT")
    add("data", nargs="+", metavar="DATA", help="files, folders, tables (csv, tsv, json, ...), tar, txt")
    add("--to", type=user_path, required=True, metavar="out.parquet")
    add("--branch", default="a", metavar="NAME", help="a, b, or a name of the recipe's branches")
    add("--every", type=float, metavar="SECONDS", help="slide a window over long videos and sounds")
    add("--column", metavar="NAME", help="of a table; default: the one that the recipe's pair reads, or path")
    add("--space", choices=SPACES, default="representation", help="y, or z, which crosses between branches")
    add("--level", choices=("pooled", "tokens"), default="pooled", help="a vector an item, or its tokens")
    add("--dtype", choices=("float32", "float16"), default="float32")
    add("--surprise", action="store_true", help="how unforeseen the frame after each clip is, as a column")
    add("--workers", type=int, metavar="N", help="processes that read; default: as many as pay")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_step_and_imports(made, "of a run's checkpoints; default: the last")
    return made


@contextlib.contextmanager
def on_signals() -> Iterator[None]:
    """SIGTERM and its like stop as Ctrl-C does, so that processes that read end too."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
        yield
        return

    def stop(*_):
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def embed(options: argparse.Namespace) -> None:
    """What the command does. Raises its errors."""
    check(options)
    imports = imports_of(options)
    encoder = load_encoder(options.run, options.branch, options.step, imports).to(pick_device(options.device))
    if options.level == "tokens":
        token_encoder(encoder.encoder)
    else:
        encoder.width(options.space)  # refuses a space that files alone do not give
    if options.surprise:
        encoder.reader.with_targets()  # refuses what has none
        encoder.width("embedding")
    every = 0.0 if options.surprise and options.every is None else options.every  # each frame
    job = Job(encoder, every, options.space, options.dtype, options.workers, options.level, options.surprise)
    reader = encoder.reader
    if options.every is not None and not reader.timed:
        what = encoder.origin.recipe.branches[options.branch].modality["name"]
        raise RecipeError(
            f"--every: branch {options.branch} ({what}) has no time to slide over. Leave it out."
        )
    data = Data(options.data, reader, cell_of(encoder.origin.task, reader.pair, reader, options.column))
    columns = data.columns()
    with progress("list", "item") as bar:
        items, mark = data.count(bar.update)
    for note in data.notes():
        print(printable_lines(note), flush=True)
    store = Store(options.to, manifest(options, encoder, mark), job.group_parts)
    if not store.is_complete():
        store.folder.mkdir(parents=True, exist_ok=True)
        with only_one(store.folder, "--to", "embedding"):
            store.open()
            if done := work(job, data, columns, items, store):
                print(done.words(job.unit), flush=True)
            change = (Surprises(),) if options.surprise else ()
            rows, bad = store.merge(metadata(options, encoder), *change)
        if bad:
            print(f"{bad:,} could not be read and are left out: {store.bad_file} names them", flush=True)
        of = "tokens" if options.level == "tokens" else f"{encoder.width(options.space)} numbers"
        print(f"{rows:,} rows of {of}", flush=True)
    print(f"embed: {options.to}")


def check(options: argparse.Namespace) -> None:
    """Raises RecipeError for arguments that cannot be."""
    if options.to.suffix != ".parquet":
        raise RecipeError(
            f"--to: {options.to} is no name of a parquet file. Expected one ending in .parquet."
        )
    if options.every is not None and not 0 < options.every < float("inf"):
        raise RecipeError(f"--every: {options.every} is no step in time. Expected seconds above 0.")
    if options.level == "tokens" and options.space != "representation":
        raise RecipeError(
            f"--level: tokens are of y before it is pooled, and --space {options.space} is made of y. Leave"
            " out one of the two."
        )
    if options.surprise and options.level == "tokens":
        raise RecipeError("--surprise: is a number of a clip, not of its tokens. Leave out one of the two.")
    if options.workers is not None and options.workers < 0:
        raise RecipeError(f"--workers: {options.workers}. Expected a number of processes, 0 or more.")


def manifest(options: argparse.Namespace, encoder: RepresentationModel, mark: str) -> dict[str, Any]:
    """All that the rows depend on."""
    return {
        "model": encoder.origin.model,
        "branch": options.branch,
        "space": options.space,
        "dtype": options.dtype,
        "every": options.every,
        "column": options.column,
        "data": options.data,
        "items of DATA": mark,
        "device": encoder.device.type,
        "version": vicjoint.__version__,
        **level_of(options),
        **({"surprise": True} if options.surprise else {}),
    }


def metadata(options: argparse.Namespace, encoder: RepresentationModel) -> dict[str, Any]:
    """What the file says of itself."""
    origin = encoder.origin
    return {
        "run": options.run,
        "name": origin.recipe.name,
        "branch": options.branch,
        "modality": origin.recipe.branches[options.branch].modality["name"],
        "reads": encoder.reader.reads,
        "frame_rate": origin.recipe.data.frame_rate,
        "space": options.space,
        "dim": encoder.width(options.space) if options.level == "pooled" else None,
        "step": origin.step,
        "model": origin.model,
        **level_of(options),
    }


def level_of(options: argparse.Namespace) -> dict[str, str]:
    """The level, where it is not what files without one have."""
    return {} if options.level == "pooled" else {"level": options.level}


if __name__ == "__main__":
    sys.exit(main())
