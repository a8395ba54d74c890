"""Arrays: what numpy saves comes back, and what is no image says why."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from selfsight.data.formats import array as npy
from selfsight.data.formats.format import Header, Unreadable

RNG = np.random.default_rng(0)


def saved(values: np.ndarray, **how: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, values, **how)
    return out.getvalue()


def read(data: bytes, *frames: int) -> list[Any]:
    return list(npy.read(io.BytesIO(data), frames or (0,), None, None))


def reason_of(data: bytes) -> str:
    with pytest.raises(Unreadable) as raised:
        npy.headers(io.BytesIO(data), None)
    (got,) = read(data)
    assert str(got) == str(raised.value)
    return str(got)


def values(dtype: str, *shape: int) -> np.ndarray:
    return (RNG.normal(0, 1, shape) * 1e4).astype(dtype)


LAYOUTS: list[tuple[tuple[int, ...], str, str]] = [
    # shape, mode, where the rows, columns and channels of the stack of images lie in it
    ((20, 30), "L", "hw"), ((20, 30, 3), "RGB", "hwc"), ((20, 30, 16), "16", "hwc"), ((20, 30, 1), "L", "hwc"),
    ((5, 20, 30), "5", "chw"), ((1, 20, 30), "L", "chw"), ((17, 20, 30), "L", "nhw"), ((40, 20, 30), "L", "nhw"),
    ((7, 20, 30, 2), "2", "nhwc"), ((7, 4, 20, 30), "4", "nchw"), ((20, 30, 17), "L", "nhw"),
    ((64, 64, 31), "31", "hwc"), ((61, 34, 17), "17", "hwc"), ((50, 64, 32), "L", "nhw"), ((90, 40, 20), "L", "nhw"),
]  # fmt: skip


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape, mode, axes", LAYOUTS)
def test_layouts(shape: tuple[int, ...], mode: str, axes: str, order: Any):
    array = values("uint16", *shape)
    data = saved(np.asarray(array, order=order))
    stack = np.einsum(f"{axes}->{''.join(a for a in 'nhwc' if a in axes)}", array)
    stack = stack if "n" in axes else stack[None]
    stack = stack if "c" in axes else stack[..., None]
    many = len(stack) > 1
    header = [Header("NPY", stack.shape[2], stack.shape[1], mode, 16, i if many else None) for i in range(len(stack))]
    assert npy.identify(data[:256]) and npy.headers(io.BytesIO(data), None) == header
    for got, wanted in zip(read(data, *range(len(stack))), stack, strict=True):
        assert got.dtype == np.uint16 and (got == wanted).all()
    assert (read(data, len(stack) - 1)[0] == stack[-1]).all()
    assert isinstance(read(data, len(stack))[0], Unreadable)


def test_interleaved_pages_larger_than_a_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(npy, "_BLOCK", 100)
    array = values("float32", 30, 20, 25)
    assert (read(saved(np.asfortranarray(array)), 11)[0][:, :, 0] == array[11]).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "name, depth", [("u1", 8), ("u2", 16), ("i2", 32), ("u4", 32), ("i8", 32), ("f2", 32), ("f4", 32), ("f8", 32)]
)
def test_every_type_of_number(name: str, depth: int, order: str):
    array = values("f8", 20, 30).astype(order + name)
    data = saved(array)
    assert npy.headers(io.BytesIO(data), None)[0].depth == depth
    (got,) = read(data)
    assert got.dtype == {8: np.uint8, 16: np.uint16, 32: np.float32}[depth]
    assert (got[:, :, 0] == array.astype(got.dtype)).all()


def test_truth_is_white():
    array = RNG.integers(0, 2, (20, 30)).astype(bool)
    (got,) = read(saved(array))
    assert got.dtype == np.uint8 and (got[:, :, 0] == np.where(array, 255, 0)).all()


def test_headers_of_other_versions():
    array = values("f4", 20, 30)
    for version in ((1, 0), (2, 0), (3, 0)):
        out = io.BytesIO()
        np.lib.format.write_array(out, array, version=version)
        assert (read(out.getvalue())[0][:, :, 0] == array).all()


def test_what_holds_no_pixels_says_so():
    assert reason_of(saved(np.array([[{}, 1]], dtype=object), allow_pickle=True)) == "holds Python objects, not numbers"
    assert reason_of(saved(np.zeros((8, 8), np.complex64))) == "an array of dtype <c8 holds no pixels"
    assert reason_of(saved(np.full((8, 8), "cat"))) == "an array of dtype <U3 holds no pixels"
    assert reason_of(saved(np.zeros((8, 8), [("a", "f4")]))) == "an array of a structured dtype holds no pixels"
    for shape in ((), (5,), (2, 3, 20, 30, 3), (9, 20, 20, 20)):
        assert reason_of(saved(np.zeros(shape))) == f"an array of shape {shape} is neither an image nor a stack of them"
    assert reason_of(saved(np.zeros((0, 30)))) == "an image of 30 x 0 has no pixels"
    assert reason_of(saved(np.zeros((0, 20, 30, 1)))) == "a stack without pages"
    for empty in ((20, 30, 0), (0, 20, 30)):  # an axis of nothing is not one of channels
        assert reason_of(saved(np.zeros(empty))) in ("an image of 0 x 30 has no pixels", "a stack without pages")
    assert reason_of(b"") == "empty file"
    assert reason_of(b"\x93NUMPY\x01\0\x04\0{}  ") == "damaged NPY header"


def test_truncated_and_too_large():
    data = saved(values("f4", 20, 30))
    assert reason_of(data[:-5]) == "truncated NPY: the values end early"
    huge = data[:10] + data[10:128].replace(b"(20, 30), }      ", b"(10001, 20000), }") + data[128:]
    assert reason_of(huge) == "20000 x 10001 is above the limit of 200,000,000 pixels"
