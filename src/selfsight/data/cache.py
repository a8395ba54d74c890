"""The cache folder: all that can be made again from the user's files, and nothing of theirs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where collections of plain folders, canvases and features are kept: never the user's folder."""
    import platformdirs

    return Path(os.environ.get("SELFSIGHT_CACHE") or platformdirs.user_cache_dir("selfsight", appauthor=False))


def bytes_in(folder: Path) -> int:
    """Bytes of all files of a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total
