"""What this machine can do: its device, cores, threads, precision and memory."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import psutil

from selfsight.errors import MachineError, SelfsightError

# What PyTorch says in a plain RuntimeError where memory is used up: its allocator for the CPU (the second on Windows),
# Metal's, and CUDA where it is not PyTorch's own allocator that asks.
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
)


_asked: ContextVar[str | None] = ContextVar("device", default=None)


def asked_device() -> str | None:
    """The device that was asked for (`computing_on`), if one was."""
    return _asked.get()


def best_device() -> str:
    """The device to compute on: the one that was asked for (`computing_on`), else CUDA, Apple's MPS or the CPU."""
    return _asked.get() or devices()[0]


def devices() -> list[str]:
    """The devices that PyTorch can use here, the fastest first."""
    import torch

    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*(["cuda", *cuda] if cuda else []), *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


@contextmanager
def computing_on(device: str) -> Iterator[None]:
    """Within it `best_device` is `device`: cpu, cuda, cuda:1, mps. Raises `SelfsightError` for another name,
    `MachineError` where there is no such device."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", device):
        raise SelfsightError(f"--device takes cpu, cuda, cuda:N or mps, not {device!r}.")
    if device != "cpu" and device not in devices():
        kind = device.partition(":")[0]
        why = "this machine has no such device" if kind in devices() else f"this PyTorch finds no {kind.upper()} here"
        raise MachineError(f"--device {device}: {why}; available: {', '.join(devices())}.")
    before = _asked.set(device)
    try:
        yield
    finally:
        _asked.reset(before)


def kind_of(device: str) -> str:
    """cuda of cuda:1."""
    import torch

    return torch.device(device).type


PATIENCE = 5.0  # seconds, for a server to answer
MUCH_FASTER = 1.5  # than more threads, before fewer are taken


def fastest_threads(cores: int, bf16: bool, seconds: float = 0.5) -> tuple[int, float]:
    """(threads, operations a second with them): all of `cores`, or half of them or one where that runs a small
    convolution forward and back much sooner. Operations are multiplications and additions, each counted.

    Threads wait for each other many times a step. Beside another busy program we have seen two run twenty times slower
    than one (benchmarks/README.md, "Threads").
    """
    import torch

    before = torch.get_num_threads()
    layers = [torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.BatchNorm2d(64)) for _ in range(4)]
    net = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
    images = torch.zeros(64, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    rates = {}
    for threads in sorted({1, max(1, cores // 2), cores}):
        torch.set_num_threads(threads)
        began, done = 0.0, 0
        while not began or time.monotonic() - began < seconds:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                net(images).float().square().mean().backward()
            began, done = (began, done + 1) if began else (time.monotonic(), 0)  # the first pass warms up
        rates[threads] = done / (time.monotonic() - began)
    torch.set_num_threads(before)
    threads = most_threads(rates)
    pixels, weights = len(images) * 8 * 8, len(layers) * 64 * 64 * 3 * 3
    forward = 2 * pixels * weights  # going back costs twice as much
    return threads, rates[threads] * 3 * forward


def thread_rates(numbers: Sequence[int], seconds: float = 0.025) -> dict[int, float]:
    """Parallel regions a second by number of threads, each measured for `seconds`: a look during training.

    It tells free cores from busy ones. `fastest_threads` tells more, but takes seconds beside a busy program.
    """
    import torch

    before = torch.get_num_threads()
    values = torch.ones(max(numbers) * 2**16)  # PyTorch hands each thread 2**15 or more
    result, rates = torch.empty_like(values), {}
    for threads in numbers:
        torch.set_num_threads(threads)
        torch.sin(values, out=result)  # wakes them
        began, done = time.monotonic(), 0
        while not done or time.monotonic() - began < seconds:
            torch.sin(values, out=result)
            done += 1
        rates[threads] = done / (time.monotonic() - began)
    torch.set_num_threads(before)
    return rates


def most_threads(rates: Mapping[int, float], faster: float = MUCH_FASTER) -> int:
    """The most threads, unless fewer are more than `faster` times as fast. rates: runs a second by number of threads.

    The number of threads changes sums in their last bits, and so the weights: it must not hang on the noise of a
    measurement, or the same command gives another encoder.
    """
    best = max(rates.values())
    return max(threads for threads, rate in rates.items() if best <= faster * rate)


def has_bf16(device: str) -> bool:
    """Whether `device` computes bfloat16 in hardware."""
    import torch

    if kind_of(device) == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def free_memory(device: str) -> int:
    """Bytes that this process could still allocate on `device`: its share of the machine's, or of its container's."""
    import torch

    if kind_of(device) == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        most, now = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # not in a container, or in one without a limit
        return free
    return min(free, most - now)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Within it, whatever PyTorch raises where memory is used up is a `MemoryError`."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in OUT_OF_MEMORY):
            raise MemoryError(str(error)) from error
        raise


def hub_answers(name: str, kind: str, endpoint: str | None = None) -> bool:
    """Whether the Hugging Face hub can be reached, asked once about a repository: "model" or "dataset". Its libraries
    would ask again and again, for most of a minute, with a line on the terminal each time. From here on they say no
    more of this machine than they must."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    constants.HF_HUB_DISABLE_TELEMETRY = True  # else it also fetches a list of coding agents, to say which one asks
    try:
        HfApi(endpoint).repo_info(name, repo_type=kind, timeout=PATIENCE)
    except HfHubHTTPError:  # an answer, if a refusal
        return True
    except Exception:  # no connection, in one of many forms
        return False
    return True


@contextmanager
def hub_cache_only(only: bool) -> Iterator[None]:
    """Within it, if `only`, the hub's libraries take what is in their cache, and ask for nothing."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or only
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


class Environment(TypedDict):
    """What `environment.json` holds. memory_gb: of the machine, in 2**30 bytes."""

    python: str
    system: str
    machine: str
    processor: str
    cores: int
    memory_gb: float
    device: str
    versions: dict[str, str]


def environment(device: str) -> Environment:
    """The machine and the versions, for `environment.json`. Holds no path and no user name."""
    packages = ("selfsight", "torch", "torchvision", "timm", "pylance", "accelerate", "numpy", "scikit-learn", "pillow")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device,
        "versions": {name: version(name) for name in packages},
    }


def usable_cores() -> int:
    """The cores that this process may use, which in a container or a batch job can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_process(processes: int) -> int:
    """The cores for each of the `processes` of a run, which share those of each machine they run on."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor()
    return platform.processor()
