"""What Flower's carrier keeps of what arrives: the part of `benchmarks/flower_app` that runs without Flower."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np

import selfsight
from selfsight.curation.summaries import FORMAT, FORMAT_VERSION, MOST_BYTES, summarise, to_json

SPEC = importlib.util.spec_from_file_location(
    "carrier", Path(__file__).parents[2] / "benchmarks" / "flower_app" / "carrier.py"
)
assert SPEC is not None and SPEC.loader is not None
carrier = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(carrier)


def summary(name: str) -> bytes:
    return to_json(summarise(name, "digest", np.random.default_rng(len(name)).normal(size=(30, 6)))).encode()


def test_the_carrier_knows_the_protocol() -> None:
    assert (carrier.FORMAT, carrier.VERSION, carrier.MOST_BYTES) == (FORMAT, FORMAT_VERSION, MOST_BYTES)


def test_what_arrives_is_kept_to_the_byte_and_hostile_sites_do_not_spoil_it(tmp_path: Path) -> None:
    into = tmp_path / "a" / "told"
    into.mkdir(parents=True)
    (into / "old.json").write_text("of before")
    north = json.loads(summary("north"))
    honest = {"1": summary("north"), "2": summary("süd"), "3": summary("St. Marys")}
    hostile = {
        "outside": json.dumps(north | {"source": "../x"}).encode(),
        "anywhere": json.dumps(north | {"source": str(tmp_path / "x")}).encode(),
        "hidden": json.dumps(north | {"source": ".x"}).encode(),
        "control": json.dumps(north | {"source": "x\n\x1b[2J"}).encode(),
        "before": json.dumps(north | {"source": "old"}).encode(),
        "twin": json.dumps(north | {"source": "twin"}).encode(),
        "Twin": json.dumps(north | {"source": "Twin"}).encode(),
        "next": json.dumps(north | {"format_version": 2}).encode(),
        "other": b"[1]",
        "text": b"<html>\xff",
        "deep": b"[" * 100_000,
        "huge": bytes(MOST_BYTES + 1),
        "silent": "no answer in time",
        "picture": [1, 2, 3],
    }
    said = carrier.keep(hostile | honest, into)
    kept = {file.name: file.read_bytes() for file in into.iterdir()}
    assert kept == {
        "north.json": honest["1"], "süd.json": honest["2"], "St. Marys.json": honest["3"], "old.json": b"of before",
    }  # fmt: skip
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(into.iterdir())
    assert len(said) == len(hostile | honest) and all(line.isprintable() for line in said)
    for site in hostile:
        assert sum(line.startswith(f"Site {site} is left out: ") for line in said) == 1
    (into / "old.json").unlink()
    found = selfsight.curate(str(into), summaries=True)
    assert found.sources is not None and {one.source for one in found.sources} == {"north", "süd", "St. Marys"}
    assert found.notes == []
