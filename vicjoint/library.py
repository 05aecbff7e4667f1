"""The contract of parts around something of another library: an export hands it on in that library's form."""

from pathlib import Path
from typing import ClassVar


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
