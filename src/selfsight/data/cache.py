"""The cache folder: all that can be made again from the user's files, and nothing of theirs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where collections of plain folders, canvases and features are kept: never the user's folder."""
    import platformdirs

    return Path(os.environ.get("SELFSIGHT_CACHE") or platformdirs.user_cache_dir("selfsight", appauthor=False))
