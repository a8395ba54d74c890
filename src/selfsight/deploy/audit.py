"""The audit log: a line of JSON for each answer, only ever appended to."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 64 * 2**20  # of a file, before the next one is begun
KEPT = 16  # files


class Audit:
    """`audit.jsonl` in a folder. A full one becomes `audit.TIME.jsonl`, of which the last 16 are kept.

    A line has time (seconds since 1970), what was asked, the request's id, the head and its digest, and what was
    decided. No pixel is in it, and no name of an image unless that is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / "audit.jsonl", threading.Lock()
        self._file = self._open()

    def write(self, asked: str, request_id: str, head: str, digest: str, decided: object, **more: object) -> None:
        """Append a line. Raises `OSError` where it cannot be written."""
        line = {"time": round(time.time(), 3), "asked": asked, "request_id": request_id, "head": head}
        line |= {"head_digest": digest, "decision": decided, **more}
        data = (json.dumps(line) + "\n").encode()
        with self._lock:
            if os.fstat(self._file).st_size + len(data) > MOST_BYTES:
                self._rotate()
            before = os.fstat(self._file).st_size
            if os.write(self._file, data) < len(data):  # the disk is full: half a line would spoil the next one
                os.ftruncate(self._file, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Let all of it be on disk."""
        with self._lock:
            os.fsync(self._file)
            os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _rotate(self) -> None:
        """Begin another file. Where that fails, the one that is open stays so, and the next line tries again."""
        os.fsync(self._file)
        with suppress(FileNotFoundError):  # where it was renamed already, but no other could be opened
            os.replace(self._path, self._path.with_name(f"audit.{time.time_ns()}.jsonl"))
        full, self._file = self._file, self._open()
        os.close(full)
        for old in sorted(self._path.parent.glob("audit.*.jsonl"))[:-KEPT]:
            old.unlink(missing_ok=True)
