"""The cache folder: all that can be made again from the user's files, and nothing of theirs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from selfsight.errors import MachineError, in_words

WAY = "Set SELFSIGHT_CACHE to a folder that can be written, for example: export SELFSIGHT_CACHE=/tmp/selfsight"


def cache_folder() -> Path:
    """Where collections of plain folders, canvases and features are kept: never the user's folder.

    Raises `MachineError` where there is no home folder and no SELFSIGHT_CACHE.
    """
    import platformdirs

    folder = Path(os.environ.get("SELFSIGHT_CACHE") or platformdirs.user_cache_dir("selfsight", appauthor=False))
    try:
        folder = folder.expanduser()
    except RuntimeError:
        raise MachineError(f"There is no home folder for the cache. {WAY}") from None
    return folder


def check_room(folder: Path) -> None:
    """Make `folder`, if it is to be in the cache folder. Raises `MachineError` where that cannot be written."""
    if not folder.is_relative_to(cache_folder()):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MachineError(
            f"The cache folder {cache_folder()} cannot be written ({error.strerror or in_words(error)}). {WAY}"
        ) from None
