"""label-curve: arms, the labels saved, rows that survive a kill, and the picture."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_encoder
from matplotlib.figure import Figure
from PIL import Image

import selfsight
from selfsight.encoders.store import save
from selfsight.errors import SelfsightError
from selfsight.heads.arms import ARMS
from selfsight.heads.curves import LabelCurve, Row, draws_of, figures, hurried, read_rows
from selfsight.report.plots import draw_curve
from selfsight.report.savings import verdict
from selfsight.verbs.label_curve import show


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with two classes of noise, red and green, and an encoder."""
    folder = tmp_path_factory.mktemp("curve")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 12)):
        for channel, name in enumerate(("red", "green")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (32, 32, 3), np.uint8)
                pixels[:, :, channel] += rng.integers(0, 130, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    save(tiny_encoder(), folder / "encoder")
    return folder


def curve(data: Path, out: Path, **changes: object) -> LabelCurve:
    given = {"shots": "1,2,all", "seeds": 2, "arms": "frozen,random"} | changes
    return selfsight.label_curve(
        str(data / "encoder"), train=str(data / "train"), test=str(data / "test"), out=str(out), **given
    )


def row(arm: str, labels: int, share: float, seed: int = 0, items: int = 80) -> Row:
    import base64

    hits = base64.b64encode(np.packbits(np.arange(items) < share * items).tobytes()).decode()
    return Row(arm, "all" if labels == 64 else str(labels // 2), seed, "", labels, items, share, hits)


def made(shares: dict[int, float], level: float | None) -> LabelCurve:
    """A result with closed-form curves of two classes: 64 labels are all."""
    rows = [row("frozen", labels, share, seed) for labels, share in shares.items() for seed in (0, 1)]
    rows += [] if level is None else [row("scratch", 64, level)]
    curves, reach, found = figures(rows, np.ones(80), [None] * 80, 2)
    return LabelCurve("m", ["a", "b"], 64, 80, "top1", reach, found, curves, 2, 5.0, "", "", [], "curve.png")


def test_all_arms_from_folders_to_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = curve(data, tmp_path / "out", arms="frozen,random,start,scratch", minutes=0.03)
    assert list(result.curves) == ["frozen", "random", "scratch"]  # an encoder that was no run has no start
    assert [p.shots for p in result.curves["frozen"]] == ["1", "2", "all"]
    assert [p.labels for p in result.curves["frozen"]] == [2, 4, 32] and result.train_items == 32
    assert [p.draws for p in result.curves["frozen"]] == [2, 2, 1]
    assert [(p.shots, p.labels) for p in result.curves["scratch"]] == [("all", 32)]
    assert result.level is not None and set(result.needed) == {"frozen", "random"}
    assert json.loads((tmp_path / "out" / "curve.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert len((tmp_path / "out" / "curve.csv").read_text().splitlines()) == 1 + 3 + 3 + 1
    with Image.open(tmp_path / "out" / "curve.png") as picture:
        assert picture.size == (864, 576)
    show(result)
    said = capsys.readouterr().out
    assert said.startswith("Labels needed to reach what supervision from scratch reaches with all 32, accuracy ")
    assert len([line for line in said.splitlines() if line.startswith(("1 ", "2 ", "all "))]) == 3


def test_ways_to_spend_the_same_labels(data: Path, tmp_path: Path) -> None:
    how = {"arms": "frozen,selected,selftrained,finetuned", "shots": "2,4", "scratch_shots": "4"}
    result = curve(data, tmp_path / "out", **how)
    points = {arm: [(p.shots, p.labels, p.draws) for p in found] for arm, found in result.curves.items()}
    assert points["frozen"] == points["selected"] == points["selftrained"] == [("2", 4, 2), ("4", 8, 2)]
    assert points["finetuned"] == [("4", 8, 2)]
    value = {arm: found[-1].accuracy.value or 0 for arm, found in result.curves.items()}
    assert min(value.values()) > 0.6 and value["finetuned"] > 0.9, value
    assert curve(data, tmp_path / "out", **how) == result


def test_scratch_learns_what_can_be_seen(data: Path, tmp_path: Path) -> None:
    result = curve(data, tmp_path / "out", arms="scratch", minutes=0.1)
    assert result.level is not None and (result.level.value or 0) > 0.8
    assert result.needed == {} and "the only arm" in verdict(result)


def test_scratch_with_a_few_labels_is_drawn_as_often_as_the_others(data: Path, tmp_path: Path) -> None:
    how = {"arms": "frozen,scratch", "scratch_shots": "2", "minutes": 0.01}
    few = curve(data, tmp_path / "out", **how)
    assert [(p.shots, p.draws) for p in few.curves["scratch"]] == [("2", 2)]
    assert few.level is None and few.needed == {}  # which is with all labels
    every = curve(data, tmp_path / "out", **how | {"scratch_shots": "all"})
    assert [(p.shots, p.draws) for p in every.curves["scratch"]] == [("2", 2), ("all", 1)]
    assert every.level == every.curves["scratch"][1].accuracy and set(every.needed) == {"frozen"}
    assert every.curves["frozen"] == few.curves["frozen"]  # further points move no interval


def test_what_is_measured_is_kept_and_new_shots_are_added(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    curve(data, out, shots="1,all")
    before = (out / "rows.jsonl").read_text()
    result = curve(data, out, shots="2", seeds=2)
    after = (out / "rows.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == len(before.splitlines()) + 2 * 2
    assert [p.shots for p in result.curves["frozen"]] == ["1", "2", "all"]
    assert curve(data, out) == result and (out / "rows.jsonl").read_text() == after
    assert result.curves == curve(data, tmp_path / "fresh").curves


def test_other_labels_or_another_encoder_are_measured_anew(data: Path, tmp_path: Path) -> None:
    one = curve(data, tmp_path / "out", arms="frozen", shots="1")
    sides = {"train": str(data / "train"), "test": str(data / "test"), "out": str(tmp_path / "out")}
    other = selfsight.label_curve(tiny_encoder(seed=1), arms="frozen", shots=1, seeds=2, **sides)
    sides["train"] = str(data / "test")
    same = selfsight.label_curve(str(data / "encoder"), arms=["frozen"], shots=1, seeds=2, **sides)
    assert len({each.encoder for each in (one, other)}) == 2 and one.labels != same.labels
    assert len(read_rows(tmp_path / "out")) == 6 and any("byte for byte" in note for note in same.notes)


def test_a_killed_measurement_goes_on_and_gives_the_same(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["label-curve", str(data / "encoder"), "--train", str(data / "train"), "--test", str(data / "test")]
    words += ["-o", str(out), "--shots", "1,2", "--seeds", "60", "--arms", "frozen"]
    with subprocess.Popen([sys.executable, "-m", "selfsight", *words], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(read_rows(out)) < 3 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    kept = read_rows(out)
    assert 3 <= len(kept) < 120
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"arm": "frozen", "sho')  # as a kill within a line leaves it
    got = curve(data, out, shots="1,2", seeds=60, arms="frozen")
    rows = read_rows(out)
    assert rows[: len(kept)] == kept and len(rows) == len({row.key for row in rows}) == 120
    assert got.curves == curve(data, tmp_path / "fresh", shots="1,2", seeds=60, arms="frozen").curves


def test_one_collection_is_split_by_a_column(data: Path, tmp_path: Path) -> None:
    table = tmp_path / "items.csv"
    lines = [f"{p},{p.parent.name},{p.parent.parent.name}" for p in sorted(data.glob("t*/*/*.png"))]
    table.write_text("\n".join(["path,label,split", *lines]) + "\n")
    out = str(tmp_path / "out")
    got = selfsight.label_curve(
        str(data / "encoder"), data=str(table), split_by="split", out=out, arms="frozen", shots=1
    )
    assert (got.train_items, got.test_items) == (32, 24)


def test_the_first_sentence_says_what_is_saved() -> None:
    shares = {2: 0.5, 8: 0.7, 32: 0.8, 64: 0.9}
    said = verdict(made(shares, 0.7))
    assert ": 8 [8, 8], by frozen features, linear head. Labels saved: 87.5 % [87.5, 87.5]." in said
    said = verdict(made(shares, 0.95))
    assert "not reached. With 64 labels" in said and "90.0 %" in said and " -5.0 [" in said
    assert "at most 2 [2, 2]" in verdict(made(shares, 0.4)) and "fewer might do" in verdict(made(shares, 0.4))
    assert "not measured" in verdict(made(shares, None))


def test_uneven_classes_are_measured_in_balanced_accuracy() -> None:
    truth = np.repeat([0, 1], [60, 20])
    from selfsight.heads.curves import weights_of

    curves, _, _ = figures([row("frozen", 8, 0.75)], weights_of(truth), [None] * 80, 2)  # the 60 of one class are right
    assert curves["frozen"][0].accuracy.value == pytest.approx(0.5)


def test_the_picture_shows_the_figures() -> None:
    result = made({2: 0.5, 8: 0.7, 32: 0.8, 64: 0.9}, 0.7)
    axes = Figure().subplots()
    draw_curve(axes, result)
    line, level, mark = axes.get_lines()
    assert line.get_xdata().tolist() == [1, 4, 16, 32] and line.get_ydata().tolist() == pytest.approx([50, 70, 80, 90])
    assert list(level.get_ydata()) == pytest.approx([70, 70])
    assert list(mark.get_xdata()) == pytest.approx([4]) and list(mark.get_ydata()) == pytest.approx([70])
    assert axes.get_xscale() == "log" and [t.get_text() for t in axes.get_xticklabels()] == ["1", "4", "16", "32"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == [
        "frozen features, linear head", "supervised from scratch, all 64 labels", "reached with 8 labels",
    ]  # fmt: skip


def test_a_number_that_no_class_has_more_than_is_all() -> None:
    assert [d.shots for d in draws_of(["1", "10", "16", "100"], 2, 16)] == ["1", "1", "10", "10", "all"]
    assert [d.shots for d in draws_of(["1"], 2, 16)] == ["1", "1"]


def test_a_hurried_training_is_said() -> None:
    calm, hasty = row("scratch", 64, 0.5), Row("scratch", "all", 0, "", 64, 80, 0.5, "", passes=3.0)
    assert hurried([calm]) == [] and "saw each label 3 times only" in hurried([hasty])[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": "frozn"}, "no arm 'frozn'. Choose among frozen, selected, .*scratch. Did you mean frozen"),
        ({"arms": ""}, "--arms is empty"),
        ({"shots": "0"}, "--shots takes"),
        ({"seeds": 0}, "--seeds must be"),
        ({"minutes": 0.0}, "--minutes must be above 0"),
    ],
)
def test_mistakes_are_one_sentence(data: Path, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(SelfsightError, match=said):
        curve(data, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_every_arm_says_what_it_is() -> None:
    assert len({arm.title for arm in ARMS.values()}) == len(ARMS)
