"""The energy of a training, measured offline by codecarbon and kept in the run."""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypedDict, cast

from selfsight.console import console
from selfsight.distributed import processes
from selfsight.errors import MachineError, SelfsightError
from selfsight.files import read_json, write_whole
from selfsight.training.run import Folder
from selfsight.training.trackers import installed

EVERY_SECONDS, KEPT_EVERY = 15, 4  # a measurement; measurements after which `energy.json` is written
MEASURED = ("intel_rapl", "intel_power_gadget", "windows_emi")  # what codecarbon calls counters that it can read


def check_energy(asked: bool) -> None:
    """Raise `SelfsightError` if energy is `asked` for and cannot be measured: codecarbon is missing, or the country or
    price is invalid."""
    if not asked:
        return
    if not installed("codecarbon"):
        raise MachineError("--energy needs another package: pip install 'selfsight[energy]'")
    _price()
    if country := _country():
        from codecarbon.input import DataSource

        if country not in DataSource().get_global_energy_mix_data():
            raise SelfsightError(
                f"SELFSIGHT_COUNTRY is {country}, of which codecarbon knows nothing. Give three letters, such as DEU, "
                "or unset it: energy is measured without."
            )


class Measured(Protocol):
    """Codecarbon's figures, as far as they are used.

    energy_consumed: kWh.
    emissions: kg of CO2.
    cpu_model: name of the processor.
    gpu_model: name of the GPU.
    """

    energy_consumed: float
    emissions: float
    cpu_model: str
    gpu_model: str


class Kept(TypedDict, total=False):
    """The content of `energy.json`.

    energy_kwh: kWh of all starts that measured.
    co2_kg: kg of CO2.
    cost: in the currency of the price.
    method: how it was measured.
    """

    energy_kwh: float
    co2_kg: float
    cost: float
    method: str


class Energy:
    """Context in which the energy of this process is measured, if asked. `energy.json` sums up all starts that asked.

    It reads the counters of processor and GPU if the machine allows it, else it estimates from the kind of processor;
    `method` says which. CO2 needs SELFSIGHT_COUNTRY (ISO 3166, three letters), as nothing is looked up. Cost needs
    SELFSIGHT_KWH_PRICE, the price of a kWh. A kill loses about a minute.
    """

    def __init__(self, run: Folder, asked: bool) -> None:
        self.file = run.path / "energy.json"
        self.before: Kept = read_energy(run.path) or {}
        self.tracker: Any = None
        self.most = 0.0
        self.lock = threading.Lock()  # codecarbon calls from a thread of its own
        if asked:
            from codecarbon import OfflineEmissionsTracker

            logging.getLogger("codecarbon").disabled = True  # it speaks before its own level is set
            # What is False or empty here would else be taken from the user's ~/.codecarbon.config, and sent for.
            self.tracker = OfflineEmissionsTracker(
                country_iso_code=_country() or "USA", tracking_mode="process", measure_power_secs=EVERY_SECONDS,
                output_methods=[], output_handlers=[_Listener(self)], api_call_interval=KEPT_EVERY,
                emissions_endpoint=False, electricitymaps_api_token="", allow_multiple_runs=True, log_level="critical",
            )  # fmt: skip

    def __enter__(self) -> Energy:
        if self.tracker:
            self.tracker.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not self.tracker:
            return
        self.tracker.stop()
        if not self.most:  # codecarbon keeps its own errors to itself
            console().print("The energy of this start could not be measured or written.", style="yellow")

    def keep(self, data: Measured) -> None:
        """Add the figures of this start to those of earlier starts in `energy.json`."""
        with self.lock:
            if data.energy_consumed <= self.most:
                return
            kept: Kept = {"energy_kwh": self.before.get("energy_kwh", 0.0) + float(data.energy_consumed)}
            if _country() and (not self.before or "co2_kg" in self.before):  # of all of the energy, or not at all
                kept["co2_kg"] = self.before.get("co2_kg", 0.0) + float(data.emissions)
            if price := _price():
                kept["cost"] = kept["energy_kwh"] * price
            kept["method"] = _method(self.tracker, data)
            write_whole(self.file, json.dumps(kept))
            self.most = data.energy_consumed


class _Listener:
    """Receives codecarbon's figures, now and then and at the end."""

    def __init__(self, energy: Energy) -> None:
        self.energy = energy

    def live_out(self, total: Measured, delta: Measured) -> None:
        with suppress(OSError):  # a full disk stops the run where it must; this file is written again in a minute
            self.energy.keep(total)

    out = live_out

    def exit(self) -> None:
        pass


def _method(tracker: Any, data: Measured) -> str:
    """How the figures were measured, in words. Codecarbon does not say when it only estimates."""
    parts = {type(part).__name__: part for part in tracker._hardware}
    name = data.cpu_model or "unknown"
    if "AppleSiliconChip" in parts or getattr(parts.get("CPU"), "_mode", "") in MEASURED:
        processor = f"processor ({name}) measured for the whole machine"
    else:
        processor = f"processor ({name}) estimated from this process's load and the power of its kind"
    gpu = f"GPU ({data.gpu_model}) measured" if data.gpu_model else "no GPU"
    alone = f", the first of {processes()} processes only" if processes() > 1 else ""
    return f"codecarbon: {processor}, memory estimated, {gpu}{alone}"


def _country() -> str:
    return os.environ.get("SELFSIGHT_COUNTRY", "").strip().upper()


def _price() -> float:
    """The price of a kWh; 0 if it is not given."""
    text = os.environ.get("SELFSIGHT_KWH_PRICE", "").strip()
    try:
        return float(text or 0)
    except ValueError:
        raise SelfsightError(f"SELFSIGHT_KWH_PRICE is {text!r}. Give the price of a kWh as a number.") from None


def read_energy(run: os.PathLike[str]) -> Kept | None:
    """The energy that the run in this folder took; None if it was not measured."""
    return cast(Kept | None, read_json(Path(run, "energy.json")))
