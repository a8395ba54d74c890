"""The energy that a training takes, by codecarbon, measured offline and kept in the run."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from selfsight.errors import SelfsightError
from selfsight.training.run import Run, write_whole

EVERY_SECONDS = 15


def check_energy(asked: bool) -> None:
    """Raise `SelfsightError` if it is asked for and codecarbon is not installed."""
    if asked and importlib.util.find_spec("codecarbon") is None:
        raise SelfsightError("--energy needs one package more. Run: pip install 'selfsight[energy]'")


class Energy:
    """Within it, the energy of this process is measured, if asked; `energy.json` sums up all starts of the run.

    By the counters of processor and GPU where the machine lets them be read, else from a constant for its kind of
    processor. CO2 only if SELFSIGHT_COUNTRY names a country (ISO 3166, three letters): nothing is looked up. Cost
    only if SELFSIGHT_KWH_PRICE gives the price of a kWh.
    """

    def __init__(self, run: Run, asked: bool) -> None:
        self.file = run.path / "energy.json"
        self.tracker: Any = None
        if asked:
            from codecarbon import OfflineEmissionsTracker

            logging.getLogger("codecarbon").disabled = True  # it speaks before its own level is set
            self.tracker = OfflineEmissionsTracker(
                country_iso_code=os.environ.get("SELFSIGHT_COUNTRY", "USA"), output_methods=[], tracking_mode="process",
                measure_power_secs=EVERY_SECONDS, log_level="critical", allow_multiple_runs=True,
            )  # fmt: skip

    def __enter__(self) -> Energy:
        if self.tracker:
            self.tracker.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not self.tracker:
            return
        self.tracker.stop()
        data = self.tracker.final_emissions_data
        before = read_energy(self.file.parent) or {}
        total: dict[str, Any] = {"energy_kwh": before.get("energy_kwh", 0.0) + float(data.energy_consumed)}
        if "SELFSIGHT_COUNTRY" in os.environ:
            total["co2_kg"] = before.get("co2_kg", 0.0) + float(data.emissions)
        if "SELFSIGHT_KWH_PRICE" in os.environ:
            total["cost"] = total["energy_kwh"] * float(os.environ["SELFSIGHT_KWH_PRICE"])
        total["method"] = f"codecarbon, {data.cpu_model or 'unknown processor'}, {data.gpu_model or 'no GPU'}"
        write_whole(self.file, json.dumps(total))


def read_energy(run: os.PathLike[str]) -> dict[str, Any] | None:
    """What `Energy` kept in a run folder, None if nothing was measured."""
    try:
        return dict(json.loads(Path(run, "energy.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
