"""Exports on the Hugging Face hub, or in a folder.

encoder = vicjoint.from_pretrained("me/frames", branch="a")    # raw view -> y [B, dim]
vicjoint.push_to_hub("exported", "me/frames")                  # a folder that vicjoint.export wrote
"""

from collections.abc import Collection
from pathlib import Path

from vicjoint.embeddings.encoder import RepresentationModel
from vicjoint.export import load_encoder
from vicjoint.exporting import facts
from vicjoint.exporting.reading import is_export
from vicjoint.files.paths import user_path
from vicjoint.library import ask_hub
from vicjoint.recipe import RecipeError
from vicjoint.registry import need

PROGRAMS = ("*.onnx", "*.onnx.data", "*.pt2")  # another form of the same weights
HUB = "huggingface_hub"


def from_pretrained(
    name: str | Path,
    branch: str | None = None,
    revision: str | None = None,
    imports: Collection[str] | None = (),
) -> RepresentationModel:
    """The encoder of an export, in evaluation mode: of a folder, or of a repository on the hub, which is
    fetched into the hub's own cache folder. branch: None: the one that the export names as its first.
    revision: of the repository: a branch, tag or commit. imports: as load_encoder. Raises RecipeError where
    neither is there, or it cannot be fetched."""
    folder = user_path(name)
    folder = folder if folder.is_dir() else fetched(str(name), revision)
    first = facts.read_object(folder / facts.CONFIG).get("branch", "a")
    return load_encoder(folder, branch or first, imports=imports)


def fetched(name: str, revision: str | None) -> Path:
    """The folder of a hub's repository in the hub's cache."""
    (hub,) = need([HUB], "from_pretrained", "text")
    if name[:1] in ("", ".", "~", "/") or name.count("/") > 1:
        raise RecipeError(
            f"{name}: no such folder. Expected an export, or the name of one on the hub (me/frames)."
        )
    ask_hub()
    try:
        return Path(hub.snapshot_download(name, revision=revision, ignore_patterns=PROGRAMS))
    except Exception as error:  # the network, the hub's answer, the name: each has errors of its own
        raise RecipeError(
            f"{name}: no such folder, and it cannot be fetched from the hub ({first_line(error)}). Where"
            f" there is a network: hf download {name} --local-dir FOLDER, then from_pretrained('FOLDER')."
        ) from None


def push_to_hub(folder: str | Path, name: str, private: bool = False) -> str:
    """Upload an export's folder as the repository `name` of the hub, which is made where there is none, and
    give its address. Raises RecipeError where the folder is no export, or the hub refuses."""
    (hub,) = need([HUB], "push_to_hub", "text")
    folder = user_path(folder)
    if not folder.is_dir() or not is_export(folder):
        raise RecipeError(
            f"{folder} is no export. Write one first: python -m vicjoint.export RUN --to {folder}"
        )
    ask_hub()
    try:
        api = hub.HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="vicjoint export")
    except Exception as error:  # as above
        raise RecipeError(
            f"{name}: {folder} cannot be uploaded to the hub ({first_line(error)}). Log in with hf auth"
            f" login, or set HF_TOKEN; without a network, copy the folder, then: hf upload {name} {folder}."
        ) from None
    return str(address)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
