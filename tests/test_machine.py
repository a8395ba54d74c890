"""What the machine can do: memory that is used up told by type, threads that do not hang on noise."""

from __future__ import annotations

import json
import socket
import time

import pytest
import torch

from selfsight.encoders.weights import load
from selfsight.errors import MachineError, SelfsightError
from selfsight.machine import best_device, computing_on, devices, kind_of, memory_errors, most_threads

MORE_THAN_ANY = 2**50  # numbers: more than a processor of 64 bits can address


def test_memory_that_there_is_not_is_a_memory_error():
    with pytest.raises(MemoryError, match=str(4 * MORE_THAN_ANY)) as told, memory_errors():
        torch.empty(MORE_THAN_ANY)
    assert type(told.value.__cause__) is RuntimeError  # which says so in its text only
    with pytest.raises(MemoryError), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="size"), memory_errors():
        torch.ones(2) + torch.ones(3)
    with pytest.raises(RuntimeError, match="illegal"), memory_errors():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("rates", "threads"),
    [
        ({1: 100.0, 2: 180.0}, 2),
        ({1: 100.0, 2: 95.0}, 2),  # which of them is ahead is noise
        ({1: 100.0, 2: 67.0}, 2),
        ({1: 100.0, 2: 66.0}, 1),
        ({1: 100.0, 2: 3.0}, 1),  # on a machine that something else keeps busy
        ({1: 90.0, 4: 100.0, 8: 70.0}, 8),
        ({1: 90.0, 4: 100.0, 8: 20.0}, 4),
    ],
)
def test_the_most_threads_unless_fewer_are_much_faster(rates: dict[int, float], threads: int):
    assert most_threads(rates) == threads


def test_the_device_that_is_asked_for_is_the_best_while_it_lasts():
    before = best_device()
    with computing_on("cpu"):
        assert best_device() == "cpu"
    assert best_device() == before == devices()[0] and devices()[-1] == "cpu"
    assert kind_of("cuda:1") == "cuda"


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda1", "", "meta", "cpu:0"])
def test_a_device_that_is_none_is_refused(name: str):
    with pytest.raises(SelfsightError, match="--device takes cpu, cuda, cuda:N or mps, not"), computing_on(name):
        raise AssertionError


def test_a_device_that_is_not_here_is_the_machines_lack():
    lacking = [name for name in ("cuda", "mps", "cuda:999") if name not in devices()]
    assert lacking
    for name in lacking:
        with pytest.raises(MachineError, match=f"--device {name}: .*; available: {', '.join(devices())}"):
            computing_on(name).__enter__()


def test_a_verb_computes_on_the_device_that_it_was_given(tmp_path, images):
    import selfsight
    from selfsight.training.run import Run

    photos = str(images(6))
    with pytest.raises(SelfsightError, match="not 'gpu'"):
        selfsight.embed(photos, model="resnet18", device="gpu")
    assert selfsight.plan(photos, steps=2, batch_size=4, device="cpu").estimate.device == "cpu"
    selfsight.pretrain(photos, out=str(tmp_path / "run"), steps=2, batch_size=4, device="cpu")
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["device"] == "cpu"
    assert "device" not in Run.open(tmp_path / "run").read_recipe()[1].to_dict()


def test_weights_that_cannot_be_fetched_are_asked_for_once(monkeypatch: pytest.MonkeyPatch, capfd):
    hosts = []

    def refused(host, *_, **__):
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited for {seconds} s to ask again"))
    with pytest.raises(MachineError, match="not in the cache, and the network cannot be reached"):
        load("timm:resnet18")
    assert len(hosts) == 1 and capfd.readouterr() == ("", "")
