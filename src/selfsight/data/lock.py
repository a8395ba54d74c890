"""A file that keeps other processes of this machine out of a folder while one works in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


class Busy(Exception):
    """Another living process holds the lock; the message is its number."""


def holder(lock: Path) -> int | None:
    """The living process that holds a lock."""
    import psutil

    try:
        signed = lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    owner = signed.partition(" ")[0]
    if owner.isdecimal() and psutil.pid_exists(int(owner)) and _signature(int(owner)) == signed:
        return int(owner)
    return None


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Hold `lock`; what a killed process left is taken over. Raises `Busy`, and `OSError` if it cannot be written."""
    own = lock.with_name(f"{lock.name}.{os.getpid()}")
    try:
        own.write_text(_signature(os.getpid()), encoding="utf-8")
        while not _taken(own, lock):
            owner = holder(lock)
            if owner not in (None, os.getpid()):
                raise Busy(str(owner))
            lock.unlink(missing_ok=True)
    except OSError as error:  # what fails while writing does not say where
        guarded = lock.with_name(lock.name.removesuffix(".lock")) if lock.suffix else lock.parent
        raise OSError(error.errno, error.strerror, str(guarded)) from None
    finally:
        own.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


@contextmanager
def awaited(lock: Path, pause: float) -> Iterator[None]:
    """Hold `lock`, once nobody else does: asked for again every `pause` seconds."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(lock))
                break
            except Busy:
                time.sleep(pause)
        yield


def _taken(own: Path, lock: Path) -> bool:
    """Make `lock` with the content of `own`, unless there is one."""
    try:
        os.link(own, lock)  # in one step, with its content
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, such as exFAT
        try:
            with lock.open("x", encoding="utf-8") as file:
                file.write(own.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _signature(process: int) -> str:
    """What names a process for good: numbers are used again, so its start counts too."""
    import psutil

    try:
        return f"{process} {psutil.Process(process).create_time()}"
    except psutil.NoSuchProcess:
        return ""
