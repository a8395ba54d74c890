"""serve: what a service answers is what `predict` says, and what it is told is where `adapt` looks for it."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caller import Caller
from helpers import tiny_encoder
from PIL import Image
from safetensors.numpy import load_file, save_file

import selfsight
from selfsight.data.annotations import coco
from selfsight.data.annotations.rle import decode
from selfsight.data.decisions import Journal
from selfsight.data.importers import open_source

HEADS = ("colours", "shades", "parts", "cells", "spots", "boxed")


@pytest.fixture(scope="module")
def offline(place: Path) -> Any:
    """{head: {uri: the row that `predict` gives}} and the folder with its pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSIGHT_CACHE", str(place / "cache"))
        rows = {}
        for name in HEADS:
            out = str(place / "found" / name) if name in ("parts", "cells", "spots", "boxed") else None
            found = selfsight.predict(str(place / "new"), head=str(place / "heads" / name), out=out)
            rows[name] = {row["uri"]: row for row in found.table.to_pylist()}
        return rows


def same(one: Any, other: Any) -> bool:
    """Whether two answers are the same but for the last bits of their numbers, which hang on the batch."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5)
    return bool(one == other)


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("id", "uri", *names)}


@pytest.mark.parametrize("head", HEADS)
def test_answers_are_those_of_predict(service: Any, place: Path, offline: Any, head: str) -> None:
    """File by file, and all at once; of each file, whatever its format, size and depth."""
    files = sorted((place / "new").iterdir())
    fine = [file for file in files if file.name != "broken.png"]
    pictures = ("map", "mask", "overlay")
    for file in fine:
        reply = service.predict(head, file.read_bytes())
        assert reply.status == 200, reply
        [row] = reply.json["predictions"]
        expected = offline[head][file.name]
        assert same(without(row, *pictures), without(expected, *pictures)), (file.name, row, expected)
        assert reply.json["head_digest"] == expected["head"] and reply.json["head"] == head
        assert re.fullmatch(r"[0-9a-f]{32}", reply.json["request_id"])
        assert reply.headers["x-request-id"] == reply.json["request_id"]
    rows = service.several(head, [(file.name, file.read_bytes()) for file in files]).json["predictions"]
    assert [row["uri"] for row in rows] == [file.name for file in files]
    for row in rows:
        assert same(without(row, *pictures), {**without(offline[head][row["uri"]], *pictures)} | {}) or row["reason"]
    [broken] = [row for row in rows if row["uri"] == "broken.png"]
    assert broken["reason"] == offline[head]["broken.png"]["reason"] and "label" not in broken


@pytest.mark.parametrize("head", ["parts", "cells", "spots"])
def test_pictures_are_the_files_of_predict(service: Any, place: Path, offline: Any, head: str) -> None:
    column, folder = ("map", "maps") if head == "parts" else ("mask", "masks")
    for name in ("cells-0", "turned"):
        file = next((place / "new").glob(f"{name}.*"))
        [row] = service.predict(head, file.read_bytes(), "?pictures=true").json["predictions"]
        written = (place / "found" / head / folder / f"{name}.png").read_bytes()
        one, other = (np.asarray(Image.open(io.BytesIO(d)), np.int64) for d in (base64.b64decode(row[column]), written))
        assert one.shape == other.shape and abs(one - other).max() <= (8 if head == "parts" else 0)
        with Image.open(io.BytesIO(base64.b64decode(row["overlay"]))) as overlay:
            assert overlay.size == one.shape[::-1] and overlay.mode == "RGB"
        assert service.predict(head, file.read_bytes()).json["predictions"][0][column] is None


@pytest.mark.parametrize("head", ["cells", "spots"])
def test_coco_is_what_predict_writes(service: Any, place: Path, offline: Any, head: str, tmp_path: Path) -> None:
    files = sorted((place / "new").glob("cells-*"))
    reply = service.several(head, [(file.name, file.read_bytes()) for file in files], "?format=coco")
    assert reply.status == 200 and reply.json["info"]["head_digest"] == offline[head][files[0].name]["head"]
    found = coco.read(reply.body)
    assert list(found.images) == [file.name for file in files] and not found.aside
    for name, image in found.images.items():
        if head == "cells":
            expected = offline[head][name]["objects"]
            assert [one.region for one in image.outlines] == [dict(one["rle"]) for one in expected]
        else:
            mask = np.asarray(Image.open(place / "found" / head / "masks" / name)) > 0
            assert (decode(image.outlines[0].region) == mask).all()
    assert "classify" in service.predict("colours", files[0].read_bytes(), "?format=coco").json["what"]


def test_several_pages_have_a_row_each(service: Any, place: Path, tmp_path: Path) -> None:
    pages = [Image.open(place / "new" / f"colour-{i}.png") for i in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    rows = service.predict("colours", (tmp_path / "pages.tif").read_bytes()).json["predictions"]
    assert [row["page"] for row in rows] == [0, 1, 2] and len({row["id"] for row in rows}) == 3
    singles = [service.predict("colours", (place / "new" / f"colour-{i}.png").read_bytes()) for i in range(3)]
    for row, single in zip(rows, singles, strict=True):
        assert same(without(row, "page"), without(single.json["predictions"][0]))


def test_many_at_once_are_answered_in_batches(service: Any, place: Path, offline: Any) -> None:
    files = [file for file in sorted((place / "new").iterdir()) if file.name != "broken.png"]
    wrong: list[object] = []

    def ask(number: int) -> None:
        for turn in range(4):
            head, file = HEADS[(number + turn) % 3], files[(number * 3 + turn) % len(files)]
            reply = service.predict(head, file.read_bytes())
            row = reply.json["predictions"][0] if reply.status == 200 else reply
            if reply.status != 200 or not same(without(row, "map"), without(offline[head][file.name], "map")):
                wrong.append((head, file.name, row))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    text = service.get("/metrics").body.decode()
    images, batches = (
        float(re.search(rf"^selfsight_batch_images_{what} (\S+)", text, re.M)[1]) for what in ("sum", "count")
    )  # type: ignore[index]
    assert batches < images  # some of them had company


def test_heads_of_one_encoder_share_its_work(place: Path) -> None:
    from selfsight.deploy.shared import Remembering, share
    from selfsight.heads.head import load_head

    alone, first, second = (load_head(place / "heads" / name) for name in ("colours", "colours", "shades"))
    share([first, second])
    assert isinstance(first.encoder, Remembering) and first.encoder is second.encoder
    assert first.digest == alone.digest
    pixels = [np.asarray(Image.open(place / "new" / f"colour-{i}.png")) for i in range(4)]
    placed = [first.place(number, each) for number, each in enumerate(pixels)]
    said = first.say(placed[:3])
    assert first.encoder.runs == 3
    second.say(placed[1:])
    assert first.encoder.runs == 4  # one was new
    assert all(map(same, said, alone.say(placed[:3])))


def test_shared_features_keep_the_shape_of_their_picture() -> None:
    from selfsight.deploy.shared import Remembering

    encoder = tiny_encoder(32).eval()
    remembering = Remembering(encoder).eval()
    flat, tall, wide = torch.rand(1, 3, 32, 32), torch.ones(1, 3, 64, 32), torch.ones(1, 3, 32, 64)
    with torch.inference_mode():
        for images in (flat, tall, wide, flat, tall, torch.cat([flat, flat])):  # two of them have the same bytes
            found, alone = remembering(images), encoder(images)
            assert found.grid == alone.grid and found.patches.shape == alone.patches.shape
            torch.testing.assert_close(found.patches, alone.patches)
    assert remembering.runs == 3


# -- what comes back --


def test_a_label_for_a_request_is_in_the_journal(service: Any, place: Path) -> None:
    file = place / "new" / "colour-0.png"
    asked = service.predict("colours", file.read_bytes()).json
    told = {"request_id": asked["request_id"], "label": "green", "by": "anna"}
    reply = service.tell("/v1/heads/colours/feedback", told)
    assert reply.status == 200 and reply.json["field"] == "label"
    assert reply.json["id"] == asked["predictions"][0]["id"]
    service.tell("/v1/heads/colours/feedback", told | {"label": "red", "by": "ben"})
    decisions, damaged = Journal(service.folder / "state" / "heads" / "colours.lance").read()
    assert not damaged and [(d.field, d.old, d.new, d.by) for d in decisions] == [
        ("label", None, "green", "anna"), ("label", "green", "red", "ben"),
    ]  # fmt: skip
    items = open_source(str(place / "new"))
    [known] = [row for row in items.usable.to_pylist() if row["uri"] == file.name]
    assert {d.content_hash for d in decisions} == {known["content_hash"]}  # by which adapt finds the image


def test_a_label_for_an_image_is_in_the_journal(service: Any, place: Path) -> None:
    data = (place / "new" / "turned.jpg").read_bytes()
    reply = service.form("/v1/heads/parts/feedback", [("turned.jpg", data)], {"label": "good"})
    assert reply.status == 200
    [decision] = Journal(service.folder / "state" / "heads" / "parts.lance").read()[0]
    assert (decision.id, decision.new, decision.by) == (reply.json["id"], "good", "local")
    asked = service.predict("cells", data).json
    mask = {"cell": [{"size": [50, 30], "counts": [100, 50, 1350]}]}
    told = {"request_id": asked["request_id"], "mask": mask}
    assert service.tell("/v1/heads/cells/feedback", told).json["field"] == "mask"
    assert Journal(service.folder / "state" / "heads" / "cells.lance").read()[0][0].new == mask
    boxes = [
        {"label": "cell", "x0": 1, "y0": 2.5, "x1": 20, "y1": 22},
        {"label": "disc", "x0": 8, "y0": 9, "x1": 30, "y1": 50},
    ]
    reply = service.form("/v1/heads/boxed/feedback", [("turned.jpg", data)], {"boxes": json.dumps(boxes)})
    assert reply.status == 200 and reply.json["field"] == "boxes", reply
    assert Journal(service.folder / "state" / "heads" / "boxed.lance").read()[0][0].new == boxes


@pytest.mark.parametrize(
    ("head", "told", "words"),
    [
        ("colours", {"label": 3}, "text"),
        ("colours", {"label": "  "}, "text"),
        ("colours", {"label": "x" * 3000}, "longer"),
        ("colours", {}, "learns from a label"),
        ("colours", {"mask": {}}, "learns from a label"),
        ("cells", {"label": "cell"}, "learns from a mask"),
        ("cells", {"mask": {"cell": {"size": [1, 1], "counts": [1]}}}, "run lengths"),
        ("cells", {"mask": 7}, "run lengths"),
        ("boxed", {"label": "cell"}, "learns from boxes"),
        ("boxed", {"boxes": {"label": "cell"}}, "a list of"),
        ("boxed", {"boxes": [{"label": "cell", "x0": 50, "y0": 2, "x1": 60, "y1": 9}]}, "40 x 40 pixels"),
        ("boxed", {"boxes": [{"label": "cell", "x0": "1", "y0": 2, "x1": 20, "y1": 9}]}, "a list of"),
        ("boxed", {"boxes": [{"label": "", "x0": 1, "y0": 2, "x1": 20, "y1": 9}]}, "a list of"),
        ("boxed", {"boxes": [{"label": "cell", "x0": float("nan"), "y0": 2, "x1": 20, "y1": 9}]}, "a list of"),
        ("colours", {"label": "red", "image": 5}, "images 0 to 0"),
        ("colours", {"label": "red", "image": True}, "images 0 to 0"),
        ("colours", {"label": "red", "by": "a\nb"}, "80 characters"),
    ],
)
def test_feedback_without_meaning_is_refused(service: Any, place: Path, head: str, told: Any, words: str) -> None:
    asked = service.predict(head, (place / "new" / "colour-1.png").read_bytes()).json
    reply = service.tell(f"/v1/heads/{head}/feedback", {"request_id": asked["request_id"]} | told)
    assert reply.status == 422 and words in reply.json["what"], reply


def test_feedback_for_what_is_not_known_is_refused(service: Any, place: Path) -> None:
    asked = service.predict("colours", (place / "new" / "colour-1.png").read_bytes()).json["request_id"]
    assert service.tell("/v1/heads/shades/feedback", {"request_id": asked, "label": "dark"}).status == 404
    assert service.tell("/v1/heads/colours/feedback", {"request_id": "x", "label": "red"}).status == 404
    assert service.tell("/v1/heads/colours/feedback", [1]).status == 422
    deep = service.ask("POST", "/v1/heads/colours/feedback", b"[" * 100_000, service.bearer)
    assert deep.status == 422 and "JSON" in deep.json["what"]


# -- versions --


def test_another_version_takes_over_and_goes_back(service: Any, place: Path) -> None:
    data = (place / "new" / "colour-0.png").read_bytes()
    before = service.predict("colours", data).json["head_digest"]
    reply = service.tell("/v1/admin/load", {"name": "colours", "folder": "colours-2"})
    assert reply.status == 200 and reply.json["digest_before"] == before, reply
    after = service.predict("colours", data).json
    assert after["head_digest"] == reply.json["head_digest"] != before
    assert re.match(r"(red|green|blue)  \d+ %", reply.json["says"])
    assert (
        f'selfsight_head{{digest="{after["head_digest"]}",head="colours"}} 1.0' in service.get("/metrics").body.decode()
    )
    back = service.tell("/v1/admin/rollback", {"name": "colours"})
    assert back.json["head_digest"] == before == service.predict("colours", data).json["head_digest"]
    assert service.tell("/v1/admin/rollback", {"name": "shades"}).status == 409


def test_a_version_that_is_not_fit_is_not_served(service: Any, place: Path) -> None:
    heads, data = service.folder / "heads", (place / "new" / "colour-0.png").read_bytes()
    before = service.predict("shades", data).json["head_digest"]
    shutil.copytree(heads / "shades", heads / "ill")
    tensors = load_file(heads / "ill" / "head.safetensors")
    save_file({name: np.asarray(value * np.nan) for name, value in tensors.items()}, heads / "ill" / "head.safetensors")
    shutil.copytree(heads / "shades", heads / "cut")
    (heads / "cut" / "head.safetensors").write_bytes(b"no tensors")
    (heads / "link").symlink_to("/etc")
    for folder, status, words in (
        ("ill", 409, "damaged"), ("cut", 409, "cannot be read"), ("parts", 409, "is for inspect"),
        ("none", 404, "no head"),
        ("../heads/shades", 422, "without a path"), ("/etc", 422, "without a path"), ("..", 422, "without a path"),
        ("link", 404, "no head"), (".hidden", 422, "without a path"),
    ):  # fmt: skip
        reply = service.tell("/v1/admin/load", {"name": "shades", "folder": folder})
        assert reply.status == status and words in reply.json["what"], (folder, reply)
        assert service.predict("shades", data).json["head_digest"] == before
    assert service.tell("/v1/admin/load", {"name": "none"}).status == 404
    assert service.tell("/v1/admin/load", {"name": "shades", "path": "/etc"}).status == 422
    assert service.tell("/v1/admin/load", {"name": "shades"}).json["head_digest"] == before  # read again


# -- what it says of itself --


def test_it_says_what_it_is(service: Any) -> None:
    assert service.ask("GET", "/health", headers={}).json == {"status": "ok"}
    assert service.ask("GET", "/ready", headers={}).json == {"status": "ready"}
    card = service.get("/card").json
    assert [head["name"] for head in card["heads"]] == list(HEADS)
    [colours] = [head for head in card["heads"] if head["name"] == "colours"]
    assert colours["classes"] == ["blue", "green", "red"] and colours["intended_use"].startswith("To tell blue")
    assert (
        colours["licence"] and colours["licence_says"] and colours["metrics"]["held_out"]["top1"]["value"] is not None
    )
    assert card["limits"]["bytes"] == 32 * 2**20
    by = {head["name"]: head["computes_with"] for head in card["heads"]}
    assert {name for name in HEADS if by[name] == "ONNX Runtime"} == {
        "shades",
        "parts",
        "cells",
    }  # which have an export
    api = service.get("/openapi.json").json
    routes = {"/v1/heads/{name}/predict", "/v1/heads/{name}/feedback", "/v1/admin/load", "/v1/admin/rollback"}
    assert set(api["paths"]) == routes | {"/health", "/ready", "/metrics", "/card"}
    assert service.get("/docs").status == service.get("/redoc").status == 404
    assert b"selfsight_requests_total" in service.get("/metrics").body


def test_the_audit_log_has_decisions_and_no_name(service: Any, place: Path) -> None:
    log = service.folder / "state" / "audit.jsonl"
    files = [("patient-7.png", (place / "new" / "colour-0.png").read_bytes()), ("gone.png", b"GIF8")]
    asked = service.several("colours", files).json
    line = json.loads(log.read_text().splitlines()[-1])
    label = asked["predictions"][0]["label"]
    assert line["decision"] == [label, "unreadable"] and line["request_id"] == asked["request_id"]
    assert line["head_digest"] == asked["head_digest"] and line["asked"] == "predict" and line["time"] > 1.7e9
    for file in service.folder.joinpath("state").rglob("*"):
        assert not file.is_file() or b"patient-7" not in file.read_bytes()
    assert "patient-7" not in (service.folder / "said.txt").read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600 == stat.S_IMODE((service.folder / "token").stat().st_mode)


def test_the_first_lines_say_how_to_call_it(service: Any, place: Path) -> None:
    said = (service.folder / "said.txt").read_text()
    assert f"http://127.0.0.1:{service.port}" in said and "Ctrl-C" in said and service.token not in said
    for name in HEADS:
        assert name in said
    [line] = [line for line in said.splitlines() if "curl" in line]
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    command = line.partition("curl")[2].replace("IMAGE", str(place / "new" / "colour-0.png"))
    with os.popen(f"cd {service.folder} && curl -s {command}") as answer:
        assert json.loads(answer.read())["predictions"][0]["label"] in ("red", "green", "blue")


def test_a_page_with_the_token_in_its_address(service: Caller) -> None:
    host = {"Host": f"127.0.0.1:{service.port}"}
    page = service.ask("GET", f"/{service.token}/", headers=host)
    assert page.status == 200 and b"drop.js" in page.body and page.headers["content-security-policy"]
    assert service.ask("GET", f"/{service.token}/drop.js", headers=host).status == 200
    assert service.ask("GET", f"/{service.token}/card", headers=host).status == 200
    assert service.ask("GET", "/", headers=host).status == 401
    assert service.ask("GET", f"/{service.token}/", headers={"Host": "evil.example"}).status == 403
    path = f"/{service.token}/v1/heads/colours/predict"
    assert service.ask("POST", path, b"x", host).status == 403
    assert service.ask("POST", path, b"x", host | {"Origin": "http://evil.example"}).status == 403
    assert service.ask("POST", path, b"x", host | {"Origin": f"http://127.0.0.1:{service.port}"}).status == 422
