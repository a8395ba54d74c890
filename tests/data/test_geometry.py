"""A geometry is known by what it says, and what older encoders said of theirs still names the same features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_encoder

from selfsight.data.canvases import decoded
from selfsight.data.features import Key
from selfsight.data.geometry import Geometry
from selfsight.data.importers import open_source
from selfsight.encoders.features import pooled
from selfsight.encoders.store import read_folder, save
from selfsight.errors import SelfsightError

GEOMETRY = Geometry(3, 64, (0.0, 255.0), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def test_three_rules():
    for rule in ("squash", "fit", "tiles"):
        assert replace(GEOMETRY, rule=rule).rule == rule
    with pytest.raises(SelfsightError, match=r"'crop'.*squash, fit, tiles"):
        replace(GEOMETRY, rule="crop")
    with pytest.raises(ValueError, match="height 0"):
        GEOMETRY.placements(0, 5)


def test_the_digest_and_the_key_of_squash_are_of_the_fields_that_there_were_before_rules():
    encoder = tiny_encoder()
    g = encoder.geometry
    said = {"channels": g.channels, "size": g.size, "window": g.window, "mean": g.mean, "std": g.std}
    said |= {"depth": g.depth, "mode": g.mode}
    made_of = [said, encoder.net.pretrained_cfg["architecture"], 1]
    digest = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=8)
    for name, tensor in sorted(encoder.net.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert encoder.digest == digest.hexdigest()
    assert g.key == hashlib.blake2b(json.dumps(said).encode(), digest_size=8).hexdigest()
    assert Key("abc", "pooled", g).elder == "abc.lance" and Key("abc", "pooled", replace(g, rule="fit")).elder is None


def test_pixels_stay_as_they_are_and_have_the_gradient_of_their_way_to_the_unit_interval():
    geometry = replace(GEOMETRY, window=(10.0, 20.0))
    values = [9.0, 12.0, 19.0, 21.0]
    plain, wanted = torch.tensor(values), torch.tensor(values, requires_grad=True)
    for pixels in (plain, wanted):
        unit = geometry.to_unit(pixels)
        assert unit.tolist() == pytest.approx([0.0, 0.2, 0.9, 1.0]) and pixels.tolist() == values
    (unit * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert wanted.grad is not None and wanted.grad.tolist() == pytest.approx([0.0, 0.2, 0.3, 0.0])


def test_each_field_changes_the_key_and_equal_geometries_share_it():
    others = [{"channels": 4}, {"size": 65}, {"window": (0.0, 254.0)}, {"mean": (0.5, 0.4, 0.2)}]
    others += [{"std": (0.2, 0.2, 0.1)}, {"depth": 16}, {"mode": "3"}, {"rule": "fit"}, {"rule": "tiles"}]
    assert len({GEOMETRY.key, *(replace(GEOMETRY, **other).key for other in others)}) == 10
    whole = replace(GEOMETRY, window=(0, 255))
    assert whole == GEOMETRY and whole.key == GEOMETRY.key


def test_an_encoder_is_saved_with_its_rule_but_with_squash_as_before_rules(tmp_path: Path):
    encoder = tiny_encoder().eval()
    digest = encoder.digest
    save(encoder, tmp_path / "squash")
    assert "rule" not in json.loads((tmp_path / "squash" / "config.json").read_text())["selfsight"]
    again = read_folder(tmp_path / "squash")
    assert again.geometry.rule == "squash" and again.digest == digest
    encoder.geometry = replace(encoder.geometry, rule="tiles")
    save(encoder, tmp_path / "e")
    again = read_folder(tmp_path / "e")
    assert again.geometry == encoder.geometry and again.about == encoder.about and again.digest != digest


def test_features_of_whole_items_refuse_what_gives_no_inputs_of_one_size(images: Callable[..., Path]):
    encoder = tiny_encoder().eval()
    encoder.geometry = replace(encoder.geometry, rule="fit")
    with pytest.raises(SelfsightError, match="rule 'fit'"):
        pooled(encoder, open_source(images(3)))


@pytest.mark.parametrize(("suffix", "size"), [("png", (40, 48)), ("jpg", (90, 31)), ("png", (64, 64))])
def test_squash_is_what_streamed_loops_decode(images: Callable[..., Path], suffix: str, size: tuple[int, int]):
    collection = open_source(images(3, size=size, suffix=suffix))
    streamed = decoded(collection, collection.usable, GEOMETRY.format, None, "", square=GEOMETRY.size)
    squares = dict(streamed)
    whole = dict(decoded(collection, collection.usable, GEOMETRY.format, None, ""))
    for number, pixels in whole.items():
        (place,) = GEOMETRY.placements(*pixels.shape[:2], stride=7)
        assert pixels.shape == (*size, 3) and (place.pixels_to_input(pixels) == squares[number]).all()
    assert len(whole) == 3
