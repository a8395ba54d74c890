"""Predictions of a camera or a stream on the network, a frame a second, as they come."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from selfsight.console import console
from selfsight.data.collection import item_id
from selfsight.data.formats.format import MAX_PIXELS, Unreadable
from selfsight.data.pixels import convert
from selfsight.errors import DataError, MachineError, SelfsightError, first_line
from selfsight.heads.head import Head
from selfsight.heads.predictions import Row

SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp")
EVERY = 1.0  # seconds between two frames that are looked at, as of a video
PATIENCE = 10.0  # seconds, for a camera to answer
AGAIN = 2.0  # seconds, until one that was lost is asked again
# What an address may lead to: a playlist that comes from the network is never led to files of this machine.
PROTOCOLS = "rtsp,rtsps,rtmp,rtp,srtp,http,https,udp,tcp,tls,crypto"


def is_stream(source: str) -> bool:
    """Whether a source is a camera of this machine, /dev/video0, or an address such as rtsp://camera/1."""
    return urlsplit(source).scheme in SCHEMES or source.startswith("/dev/video")


def without_password(source: str) -> str:
    """An address without the user and the password in it."""
    parts = urlsplit(source)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.scheme else source


def streamed(head: Head, source: str, out: Path) -> Iterator[Row]:
    """A row for a frame a second, for ever; each was appended to `out` before it is given. Where the stream ends or
    breaks off it is asked again.

    Raises `DataError` if it cannot be opened at first, `MachineError` without PyAV, `SelfsightError` for an `out` that
    is no .jsonl.
    """
    if out.suffix.lower() != ".jsonl":
        raise SelfsightError(f"Predictions of a stream are appended to a .jsonl, not to {out}.")
    name, want = without_password(source), head.encoder.geometry.format
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab") as file:
        for pixels in _for_ever(source):
            uri = f"{name}#{datetime.now(UTC).isoformat(timespec='milliseconds')}"
            row: Row = {"id": item_id(name, uri), "uri": uri, "reason": ""}
            try:
                row |= head.say([head.place(0, convert(pixels, "RGB", want))])[0]
            except Unreadable as reason:
                row["reason"] = str(reason)
            row["head"] = head.digest
            file.write((json.dumps(row) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            yield row


def _for_ever(source: str) -> Iterator[np.ndarray]:
    """The frames [H, W, 3] of a stream; a line is printed where it was lost."""
    import_av()
    seen = False
    while True:
        why = "it ended"
        try:
            for pixels in frames(source):
                seen = True
                yield pixels
        except DataError as error:
            if not seen:
                raise
            why = str(error)
        if not seen:
            raise DataError(f"{without_password(source)} gives no picture.")
        console().print(f"Lost {without_password(source)} ({why}); asking again.", soft_wrap=True)
        time.sleep(AGAIN)


def frames(source: str) -> Iterator[np.ndarray]:
    """A frame [H, W, 3] uint8 a second of a stream, the first at once, until it ends. Raises `DataError` where it
    cannot be opened, or breaks off."""
    av: Any = import_av()
    options = {"protocol_whitelist": PROTOCOLS, "max_pixels": str(MAX_PIXELS), "rtsp_transport": "tcp"}
    device = source.startswith("/dev/video")
    how: dict[str, Any] = {"format": "v4l2"} if device else {"options": options, "timeout": PATIENCE}
    try:
        with av.open(source, **how) as container:
            if not container.streams.video:
                raise DataError(f"{without_password(source)} has no pictures.")
            last: float | None = None
            for frame in container.decode(video=0):
                now = time.monotonic() if frame.time is None else frame.time
                if last is None or now < last or now - last >= EVERY - 1e-6:
                    last = now
                    yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError) as error:
        said = getattr(error, "strerror", None) or first_line(error)
        raise DataError(
            f"{without_password(source)} cannot be read ({said}). Check the address, user and password, and whether it "
            "plays elsewhere."
        ) from None


def import_av() -> ModuleType:
    """The module of PyAV. Raises `MachineError` where it is not installed."""
    try:
        import av
    except ImportError:
        raise MachineError("A camera needs PyAV: pip install 'selfsight[video]'") from None
    return av
