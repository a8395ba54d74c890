"""curate --review: the process that serves the page, what a kill leaves, and what is said of the command."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers import tiny_encoder, write_colours
from opened import Opened

import selfsight
from selfsight.data.collection import Collection
from selfsight.data.decisions import Journal
from selfsight.data.importers import open_source
from selfsight.errors import DataError, MachineError, SelfsightError
from selfsight.pages.server import Server
from selfsight.report import cloud
from selfsight.verbs.curate import show
from selfsight.verbs.curate_review import map_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures of each of three colours, and a report by hand that doubts all of the red ones and a pair."""
    folder = write_colours(tmp_path / "photos", 12, size=24)
    rows = open_source(folder).usable.select(["id", "uri"]).to_pylist()
    red = [{**row, "score": 0.5} for row in rows if row["uri"].startswith("red")]
    pair = {**red[0], "pair": {"id": red[1]["id"], "uri": red[1]["uri"]}}
    faults = {"near_duplicates": {"estimated": 1, "items": [pair]}, "off_topic": {"estimated": 6, "items": red}}
    said = {"intervals": {kind: [0, 6] for kind in faults}, "error_rate": 0.01, "notes": [], "source": str(folder)}
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "issues.json").write_text(json.dumps(faults | said))
    return folder


def test_a_killed_review_loses_no_decision_and_goes_on(photos: Path, tmp_path: Path) -> None:
    words = ("curate", str(photos), "-o", str(tmp_path / "report"), "--review", "--json")
    confirmed: list[str] = []
    with Opened(*words) as first:
        cases = first.ask("GET", "api/state")["cases"]
        assert "13 of 13 cases open" in first.said and [case["outcome"] for case in cases] == [""] * 13

        def give() -> None:
            try:
                for case in cases[3:]:
                    first.ask("POST", "api/decide", {"ids": case["items"], "action": "drop"})
                    confirmed.append(case["items"][0])
                    time.sleep(0.05)
            except (OSError, http.client.HTTPException):
                return  # killed

        giving = threading.Thread(target=give)
        giving.start()
        while len(confirmed) < 3:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.wait(20)
        giving.join(20)
    kept = [decision.id for decision in Journal(open_source(photos).path).read()[0]]
    assert kept[: len(confirmed)] == confirmed and len(kept) <= len(confirmed) + 1  # one may not have been confirmed
    with Opened(*words) as second:
        cases = second.ask("GET", "api/state")["cases"]
        assert {case["items"][0] for case in cases if case["outcome"]} == set(kept)
        second.ask("POST", "api/decide", {"ids": cases[0]["items"], "action": "keep"})
        second.send_signal(signal.SIGINT)
        out, err = second.communicate(timeout=30)
    assert second.returncode == 0 and not err, err
    told = json.loads(out)
    left = 13 - len(kept) - 3  # the pair, and its two as strays
    assert (told["reviewed"], told["settled"]) == (1, 13 - left) and len(told["off_topic"]["items"]) == left
    assert (told["items"], told["near_duplicates"]["items"]) == (36 - len(kept), [])
    assert told["reasons"] == {"dropped by decision": len(kept)}


def test_without_a_report_it_curates_first_and_features_are_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, encoder = str(write_colours(tmp_path / "photos", 8, size=24)), tiny_encoder()
    run = Server.run

    def briefly(server: Server) -> None:
        threading.Timer(0.2, server.stop).start()
        run(server)

    monkeypatch.setattr(Server, "run", briefly)
    found = selfsight.curate(folder, model=encoder, out=str(tmp_path / "report"), review=True, map="pca")
    assert found.reviewed == 0 and (tmp_path / "report" / "report.html").exists()
    show(found)
    assert "0 decisions made on the page" in capsys.readouterr().out
    drawn = map_of(Collection.open(open_source(folder).path), encoder, "pca")()
    assert len(drawn.ids) == 24 and drawn.projection.min() == 0.0 and drawn.projection.max() == 1.0
    assert sorted(text for _, text in drawn.columns["label"].key) == ["blue (8)", "green (8)", "red (8)"]


def test_mistakes_are_one_sentence(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = str(photos), str(tmp_path / "report")
    with pytest.raises(SelfsightError, match="Give it: -o FOLDER"):
        selfsight.curate(source, review=True)
    for more in ({"auto": 0.1}, {"undo": True}, {"export": "a.csv"}, {"slim": 3}, {"split": "0.5,0.5"}):
        with pytest.raises(SelfsightError, match=f"does not go with --{next(iter(more))}"):
            selfsight.curate(source, review=True, out=out, **more)  # type: ignore[arg-type]
    monkeypatch.setattr(cloud.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(MachineError, match=r"pip install 'selfsight\[map\]'.*--map pca"):
        selfsight.curate(source, review=True, out=out, map="umap")
    (tmp_path / "report" / "issues.json").write_text('{"dark"')
    with pytest.raises(DataError, match="it is damaged"):
        selfsight.curate(source, review=True, out=out)
