"""The contract of parts around something of another library: an export hands it on in that library's form.
And what is asked before something is fetched by its name on the hub."""

import functools
import os
import queue
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

HUB_SECONDS = 5.0


class LibraryPart:
    """An encoder around a model, or a modality with a tokenizer: inherited beside nn.Module or Modality. An
    export has the model or tokenizer in its library's own form, too, and the part is built from there again.
    """

    saved: ClassVar[dict[str, str]] = {"weights": "config.json"}
    """Options that name files elsewhere, and of each the file by which a folder that `save` has written, and
    which is then the option's value, is known."""

    def save(self, folder: Path) -> None:
        """Write what the options in `saved` name, or would, into an existing folder."""
        raise NotImplementedError(f"'{type(self).__name__}' has no method save(folder)")


def ask_hub(folder: Path | None = None) -> None:
    """Before something is fetched by its name, where it is no folder: where the hub does not answer within
    HUB_SECONDS, its library is told to look into its cache folder alone, for the rest of the program, which
    would try again for a minute otherwise."""
    if folder is None or not folder.is_dir():
        ask_once()


def how_to_fetch(name: str) -> str:
    """What to do where `name`, an id on the hub, cannot be reached: the end of a message."""
    said = "Without a network give a local folder made by save_pretrained"
    if name.count("/") > 1 or name[0] in "./~":
        return f"{said}."
    return (
        f"{said}, or fetch one where there is a network: hf download {name} --local-dir {name.split('/')[-1]}"
    )


@functools.cache
def ask_once() -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    # a thread: the search for an address has no time limit of its own
    threading.Thread(target=lambda: answers.put(answers_at(constants.ENDPOINT)), daemon=True).start()
    try:
        there = answers.get(timeout=HUB_SECONDS)
    except queue.Empty:
        there = False
    if not there:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are imported later
        constants.HF_HUB_OFFLINE = True


def answers_at(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS):
            return True
    except urllib.error.HTTPError as error:  # an answer, too
        error.close()
        return True
    except (OSError, ValueError):
        return False
