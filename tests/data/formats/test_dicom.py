"""DICOM: files that pydicom writes, compared with the formulas of the standard (PS3.3 C.11) written out here."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from selfsight.data.formats import dicom
from selfsight.data.formats.format import Header, Unreadable
from selfsight.errors import SelfsightError

pydicom = pytest.importorskip("pydicom")

RNG = np.random.default_rng(0)


def saved(stored: np.ndarray | bytes, shape: tuple[int, int] = (20, 30), syntax: str = "", **attributes: Any) -> bytes:
    """A DICOM of stored values ([H, W], or more for frames or colours); `attributes` by keyword."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    data.PatientID, data.PatientName = "secret 7", "Nobody^Nora"
    data.Rows, data.Columns = shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    if isinstance(stored, np.ndarray):
        data.BitsAllocated = data.BitsStored = 8 * stored.dtype.itemsize
        data.PixelRepresentation = int(stored.dtype.kind == "i")
        stored = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    if not any(keyword.endswith("PixelData") for keyword in attributes):
        data.PixelData = stored + b"\0" * (len(stored) % 2)
        data["PixelData"].VR = "OB" if data.BitsAllocated <= 8 else "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        data["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def sequence(**attributes: Any) -> Any:
    item = pydicom.Dataset()
    for keyword, value in attributes.items():
        if keyword.startswith("LUT"):  # of these the standard leaves the kind open
            item.add_new(keyword, "OW" if isinstance(value, bytes) else "US", value)
        else:
            setattr(item, keyword, value)
    return pydicom.Sequence([item])


def headers_of(data: bytes) -> list[Header]:
    assert dicom.identify(data[:256])
    return dicom.headers(io.BytesIO(data), None)


def pixels_of(data: bytes, *frames: int) -> list[np.ndarray]:
    got = list(dicom.read(io.BytesIO(data), frames or (0,), None, None))
    for pixels in got:
        if isinstance(pixels, Unreadable):
            raise pixels
    return got  # type: ignore[return-value]


def grey_of(data: bytes) -> np.ndarray:
    """[H, W]; header and pixels must agree."""
    (header,) = headers_of(data)
    (pixels,) = pixels_of(data)
    assert pixels.shape == (header.height, header.width, 1)
    assert pixels.dtype == {8: np.uint8, 16: np.uint16, 32: np.float32}[header.depth]
    return pixels[:, :, 0]


def reason_of(data: bytes) -> str:
    with pytest.raises(Unreadable) as raised:
        dicom.headers(io.BytesIO(data), None)
    (got,) = dicom.read(io.BytesIO(data), [0], None, None)
    assert str(got) == str(raised.value)
    return str(got)


def values(dtype: str, *shape: int, top: int | None = None) -> np.ndarray:
    span = np.iinfo(dtype)
    return RNG.integers(span.min, span.max if top is None else top, shape or (20, 30), dtype=dtype, endpoint=True)


def test_stored_values_stay_as_they_are():
    for dtype, depth in (("u1", 8), ("u2", 16), ("i2", 32), ("u4", 32)):
        stored = values(dtype)
        data = saved(stored)
        assert headers_of(data) == [Header("DICOM", 30, 20, "L", depth)]
        assert (grey_of(data) == stored.astype(np.float32 if depth == 32 else dtype)).all()
    twelve = values("u2", top=4095)
    assert (grey_of(saved(twelve, BitsStored=12, HighBit=11)) == twelve).all()
    floats = RNG.normal(0, 10, (20, 30)).astype("<f4")
    attributes = {"FloatPixelData": floats.tobytes(), "BitsAllocated": 32}
    assert (grey_of(saved(b"", **attributes)) == floats).all()


def test_rescaled_values():
    stored = values("i2", top=2000).clip(-1000)
    got = grey_of(saved(stored, RescaleSlope=2.5, RescaleIntercept=-1024))
    assert got.dtype == np.float32 and (got == (stored * 2.5 - 1024).astype(np.float32)).all()
    table = values("u2", 256)
    stored = values("u1")
    lut = sequence(LUTDescriptor=[256, 0, 16], LUTData=table.tolist(), ModalityLUTType="HU")
    got = grey_of(saved(stored, ModalityLUTSequence=lut))
    assert got.dtype == np.uint16 and (got == table[stored]).all()


def linear(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """0 to 1, by C.11.2.1.2.1."""
    return np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def test_the_first_window_is_applied():
    stored = values("i2", top=2000).clip(-1000)
    window = {"RescaleSlope": 1, "RescaleIntercept": -24, "WindowCenter": [40, 500], "WindowWidth": [400, 2000]}
    got = grey_of(saved(stored, **window))
    wanted = linear(stored - 24.0, 40, 400) * 65535
    assert got.dtype == np.uint16 and np.abs(got - wanted).max() <= 0.5 + 1e-6
    stored = values("u1")
    got = grey_of(saved(stored, WindowCenter=100, WindowWidth=50))
    assert got.dtype == np.uint8 and np.abs(got - linear(stored, 100, 50) * 255).max() <= 0.5 + 1e-6
    got = grey_of(saved(stored, WindowCenter=100, WindowWidth=50, VOILUTFunction="SIGMOID"))
    assert np.abs(got - 255 / (1 + np.exp(-4 * (stored - 100.0) / 50))).max() <= 0.5 + 1e-6
    got = grey_of(saved(stored, WindowCenter=100, WindowWidth=50, VOILUTFunction="LINEAR_EXACT"))
    assert np.abs(got - np.clip((stored - 100.0) / 50 + 0.5, 0, 1) * 255).max() <= 0.5 + 1e-6
    assert (grey_of(saved(stored, WindowCenter=100, WindowWidth=0)) == stored).all()  # no window at all


def test_a_table_for_display_comes_before_the_window():
    stored, table = values("u1"), values("u2", 256, top=4095)
    lut = sequence(LUTDescriptor=[256, 0, 12], LUTData=table.astype("<u2").tobytes())
    got = grey_of(saved(stored.astype("u2"), BitsStored=12, VOILUTSequence=lut, WindowCenter=9, WindowWidth=2))
    assert np.abs(got - table[stored] * (65535 / 4095)).max() <= 0.5 + 1e-6


def test_white_is_zero_is_turned():
    stored, white = values("u2", top=4095), {"PhotometricInterpretation": "MONOCHROME1"}
    assert (grey_of(saved(stored, BitsStored=12, **white)) == 4095 - stored).all()
    got = grey_of(saved(stored, BitsStored=12, WindowCenter=1000, WindowWidth=800, **white))
    assert np.abs(got - (1 - linear(stored, 1000, 800)) * 65535).max() <= 0.5 + 1e-6
    signed = values("i2")
    wanted = 2.0 * (-1 - signed.astype(float)) + 5  # the largest stored value becomes the smallest
    assert (grey_of(saved(signed, RescaleSlope=2, RescaleIntercept=5, **white)) == wanted).all()


def test_frames_and_windows_of_their_own():
    stored = values("u2", 4, 20, 30)
    data = saved(stored, NumberOfFrames=4)
    assert headers_of(data) == [Header("DICOM", 30, 20, "L", 16, i) for i in range(4)]
    assert (np.stack(pixels_of(data, 0, 1, 2, 3))[..., 0] == stored).all()
    assert (pixels_of(data, 2)[0][:, :, 0] == stored[2]).all()
    groups = [
        sequence(
            FrameVOILUTSequence=sequence(WindowCenter=1000 * i + 900, WindowWidth=700),
            PixelValueTransformationSequence=sequence(RescaleSlope=1, RescaleIntercept=100 * i),
        )[0]
        for i in range(4)
    ]
    data = saved(stored, NumberOfFrames=4, PerFrameFunctionalGroupsSequence=pydicom.Sequence(groups))
    for i, got in enumerate(pixels_of(data, 0, 1, 2, 3)):
        wanted = linear(stored[i] + 100.0 * i, 1000 * i + 900, 700) * 65535
        assert np.abs(got[:, :, 0] - wanted).max() <= 0.5 + 1e-6


def test_colours():
    array = picture(RNG, 20, 30)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    data = saved(array, PlanarConfiguration=0, **colour)
    assert headers_of(data) == [Header("DICOM", 30, 20, "RGB", 8)]
    assert (pixels_of(data)[0] == array).all()
    assert (pixels_of(saved(array.transpose(2, 0, 1), PlanarConfiguration=1, **colour))[0] == array).all()
    palette, index = values("u2", 3, 256), values("u1")
    names = [f"{c}PaletteColorLookupTable" for c in ("Red", "Green", "Blue")]
    tables = {f"{name}Data": row.astype("<u2").tobytes() for name, row in zip(names, palette, strict=True)}
    tables |= {f"{name}Descriptor": [256, 0, 16] for name in names}
    got = pixels_of(saved(index, PhotometricInterpretation="PALETTE COLOR", **tables))[0]
    assert (got == (palette >> 8).T[index]).all()


def test_compressed_pixels():
    from pydicom.encaps import encapsulate
    from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

    stored = values("u2", 3, 20, 30)
    source = pydicom.dcmread(io.BytesIO(saved(stored, NumberOfFrames=3)))
    source.compress(RLELossless)
    out = io.BytesIO()
    source.save_as(out)
    assert (np.stack(pixels_of(out.getvalue(), 0, 2))[..., 0] == stored[[0, 2]]).all()
    assert reason_of(out.getvalue()[:-200]).startswith("truncated DICOM")

    grey, jpeg = Image.fromarray(picture(RNG, 20, 30, 1)), io.BytesIO()
    grey.save(jpeg, "JPEG")
    how = {"BitsAllocated": 8, "BitsStored": 8, "PixelRepresentation": 0}
    data = saved(encapsulate([jpeg.getvalue()]), syntax=JPEGBaseline8Bit, **how)
    assert (grey_of(data) == np.asarray(Image.open(jpeg))).all()

    data = saved(stored[0], syntax=DeflatedExplicitVRLittleEndian)
    assert (grey_of(data) == stored[0]).all()
    assert reason_of(data[:-100]) == "truncated DICOM: its compression ends early"


def test_what_cannot_be_decoded_names_the_compression():
    from pydicom.encaps import encapsulate
    from pydicom.uid import MPEG4HP41, HTJ2KLossless

    how = {"BitsAllocated": 8, "BitsStored": 8, "PixelRepresentation": 0}
    reason = reason_of(saved(encapsulate([b"12"]), syntax=HTJ2KLossless, **how))
    assert reason.startswith("DICOM compressed as High-Throughput JPEG 2000") and "pip install pylibjpeg" in reason
    assert "H.264" in reason_of(saved(encapsulate([b"12"]), syntax=MPEG4HP41, **how))


def test_truncated_and_without_pixels():
    data = saved(values("u2"))
    assert reason_of(data[:-10]) == "truncated DICOM: the pixels end early"
    assert reason_of(data[: len(data) - 20 * 30 * 2 - 12]).startswith("truncated DICOM: it describes an image but ends")
    assert reason_of(saved(values("u2"), NumberOfFrames=3)).startswith("truncated DICOM")
    without = pydicom.dcmread(io.BytesIO(data))
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(without, keyword)
    out = io.BytesIO()
    without.save_as(out)
    assert reason_of(out.getvalue()) == "DICOM without pixels"
    assert reason_of(b"") == "empty file"


def test_the_limits_are_checked_before_any_pixel():
    data = saved(values("u2"), Rows=20000, Columns=20000)
    assert reason_of(data) == "20000 x 20000 is above the limit of 200,000,000 pixels"
    assert "above the limit of 1,000,000" in reason_of(saved(values("u2"), NumberOfFrames=2_000_000_000))


def test_only_named_attributes_leave_a_file():
    data = saved(values("u2"), OtherPatientIDs=["a", "b"])
    assert "secret" not in repr(headers_of(data))
    asked = ["PatientID", "PatientName", "StudyDate", "OtherPatientIDs", "Rows"]
    wanted = {"PatientID": "secret 7", "PatientName": "Nobody^Nora", "StudyDate": None}
    assert dicom.attributes(io.BytesIO(data), asked) == wanted | {"OtherPatientIDs": "a\\b", "Rows": "20"}
    with pytest.raises(SelfsightError, match=r"'PatientId' is not a DICOM keyword.* Did you mean PatientID"):
        dicom.attributes(io.BytesIO(data), ["PatientId"])
    with pytest.raises(SelfsightError, match="PixelData holds no text"):
        dicom.attributes(io.BytesIO(data), ["PixelData"])
    with pytest.raises(Unreadable, match="not a DICOM"):
        dicom.attributes(io.BytesIO(b"something else"), ["PatientID"])


def test_without_pydicom_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert reason_of(b"\0" * 128 + b"DICM") == "DICOM needs pydicom: pip install 'selfsight[dicom]'"


def test_odd_values_are_read_without_noise(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]):
    data = saved(values("u2")).replace(b"secret 7", b"\xff\xfe\xfd\\\n  7").replace(b"1.2.3\0", b"1.x.3\0")
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.filterwarnings("ignore", module=r"pydicom\.")  # which pytest has taken away
        headers_of(data)
        dicom.attributes(io.BytesIO(data), ["PatientID", "SOPInstanceUID"])
    assert not caplog.records and capfd.readouterr() == ("", "")


# -- padding --


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    "dtype, padding, limit", [("int16", -2000, None), ("int16", -2000, -1990), ("uint16", 0, None)]
)
def test_pixels_outside_of_the_image_are_as_dark_as_its_darkest(
    photometric: str, dtype: str, padding: int, limit: int | None
):
    stored = RNG.integers(100, 900, (20, 30)).astype(dtype)
    (plain,) = pixels_of(saved(stored, PhotometricInterpretation=photometric))
    padded, ends = stored.copy(), {"PixelPaddingValue": padding}
    padded[:4] = padding
    if limit is not None:
        padded[:2] = limit
        ends["PixelPaddingRangeLimit"] = limit
    (got,) = pixels_of(saved(padded, PhotometricInterpretation=photometric, **ends))
    assert np.array_equal(got[4:], plain[4:]) and (got[:4] == got[4:].min()).all()
    if dtype == "i2":  # the same bits, as an unsigned number
        ends = {keyword: end % 2**16 for keyword, end in ends.items()}
        (other,) = pixels_of(saved(padded, PhotometricInterpretation=photometric, **ends))
        assert np.array_equal(other, got)
    (kept,) = pixels_of(saved(padded, PhotometricInterpretation=photometric))
    assert not np.array_equal(kept[:4], got[:4])  # nobody declared it
