"""What `fuzz.py` breaks: small good files of every format and manifest, made here.

`CORPUS` says of each kind the suffix of its files and what makes them.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def _picture(channels: int, seed: int, dtype: str = "u1") -> np.ndarray:
    """[20, 24, C], without the last axis for one channel."""
    top = {"u1": 255, "u2": 65535}.get(dtype, 1)
    y, x = np.mgrid[:20, :24] / 24
    planes = [np.sin((3 + c) * x + (seed + 2) * y) for c in range(channels)]
    pixels = ((np.stack(planes, 2) + 1) / 2 * top).astype(dtype)
    return pixels[:, :, 0] if channels == 1 else pixels


def by_pillow(name: str, mode: str, **how: Any) -> bytes:
    """A small picture in a format and a mode of Pillow."""
    out = io.BytesIO()
    channels = {"L": 1, "1": 1, "LA": 2, "RGBA": 4}.get(mode, 3)
    Image.fromarray(_picture(channels, 0)).convert(mode).save(out, name, **how)
    return out.getvalue()


def _frames(name: str) -> bytes:
    out = io.BytesIO()
    first, *rest = (Image.fromarray(_picture(3, i)) for i in range(3))
    first.save(out, name, save_all=True, append_images=rest, duration=40)
    return out.getvalue()


def _exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, "a description"
    return tags.tobytes()


def _jpegs() -> list[bytes]:
    progressive = by_pillow("JPEG", "RGB", progressive=True, restart_marker_rows=1)
    kinds = [by_pillow("JPEG", mode) for mode in ("L", "RGB", "CMYK")]
    return [
        *kinds,
        progressive,
        by_pillow("JPEG", "RGB", exif=_exif(6)),
        by_pillow("JPEG", "RGB", subsampling=0, quality=99),
    ]


def _pngs() -> list[bytes]:
    from imagecodecs import png_encode

    deep = [bytes(png_encode(_picture(channels, 1, "u2"))) for channels in (1, 2, 3, 4)]
    kinds = [by_pillow("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    return [
        *kinds,
        *deep,
        by_pillow("PNG", "RGB", exif=_exif(5)),
        by_pillow("PNG", "P", transparency=b"\0\x80"),
        _frames("PNG"),
    ]


def _tiffs() -> list[bytes]:
    import tifffile

    def tiff(array: np.ndarray, **how: Any) -> bytes:
        out = io.BytesIO()
        tifffile.imwrite(out, array, **how)
        return out.getvalue()

    rgb, grey = _picture(3, 0), _picture(1, 0, "u2")
    stack = np.stack([_picture(1, i, "u2") for i in range(6)])
    compressed = [
        tiff(rgb, compression=name) for name in ("lzw", "zlib", "packbits", "jpeg", "zstd", "webp", "jpeg2000")
    ]
    pillow = [by_pillow("TIFF", mode) for mode in ("1", "P", "CMYK", "RGBA")] + [
        by_pillow("TIFF", "1", compression="group4")
    ]
    plain = [
        tiff(rgb),
        tiff(grey, byteorder=">"),
        tiff(grey, bigtiff=True),
        tiff(_picture(1, 0, "f4"), compression="zlib", predictor=True),
    ]
    arranged = [tiff(rgb, tile=(16, 16), compression="lzw"), tiff(_picture(5, 0), planarconfig="contig")]
    arranged += [tiff(_picture(5, 0).transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")]
    series = [
        tiff(stack, photometric="minisblack"),
        tiff(stack.reshape(2, 3, 20, 24), imagej=True, metadata={"axes": "ZCYX"}),
    ]
    series += [tiff(stack.reshape(2, 3, 20, 24), ome=True, metadata={"axes": "TCYX"})]
    return [*compressed, *pillow, *plain, *arranged, *series, _frames("TIFF")]


def _arrays() -> list[bytes]:
    arrays = [_picture(channels, 0, dtype) for channels in (1, 3, 5) for dtype in ("u1", "u2", "f4", "f8", "i2", "?")]
    arrays += [
        np.stack([_picture(1, 0)] * 20),
        np.asfortranarray(np.stack([_picture(3, 0)] * 4)),
        _picture(1, 0).astype(">f8"),
    ]
    made = []
    for array in arrays:
        out = io.BytesIO()
        np.save(out, array)
        made.append(out.getvalue())
    return made


def _dicoms() -> list[bytes]:
    import pydicom
    from pydicom import uid

    def dicom(stored: np.ndarray, syntax: uid.UID, **attributes: Any) -> bytes:
        data: Any = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if syntax == uid.RLELossless else syntax
        data.SOPClassUID, data.SOPInstanceUID = uid.CTImageStorage, "1.2.3"
        data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, "1.2.3"
        data.PatientID, data.PatientName = "7", "Nobody^Nora"
        data.Rows, data.Columns = 20, 24
        data.SamplesPerPixel = 3 if stored.shape[-1] == 3 else 1
        data.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 8 * stored.dtype.itemsize
        data.HighBit = data.BitsStored - 1
        data.PlanarConfiguration, data.PixelRepresentation = 0, int(stored.dtype.kind == "i")
        for keyword, value in attributes.items():
            setattr(data, keyword, value)
        data.PixelData = stored.tobytes()
        data["PixelData"].VR = "OB" if stored.itemsize == 1 else "OW"
        if syntax == uid.RLELossless:
            data.compress(syntax, generate_instance_uid=False)
        out = io.BytesIO()
        data.save_as(out, enforce_file_format=True)
        return out.getvalue()

    grey, rgb = _picture(1, 0, "u2"), _picture(3, 0)
    plain = (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
    )
    made = [dicom(array, syntax) for array in (grey, rgb) for syntax in plain]
    window = {"WindowCenter": 400, "WindowWidth": 900, "RescaleSlope": 1.5, "RescaleIntercept": -1024}
    made.append(dicom(grey.astype("i2"), uid.ExplicitVRLittleEndian, **window, VOILUTFunction="SIGMOID"))
    made.append(
        dicom(
            np.stack([grey] * 3), uid.ExplicitVRLittleEndian, NumberOfFrames=3, PhotometricInterpretation="MONOCHROME1"
        )
    )
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTExplanation = [256, 0, 16], "a curve"
    table.add_new("LUTData", "OW", np.arange(0, 65536, 256, dtype="u2").tobytes())
    made.append(dicom(_picture(1, 0), uid.ExplicitVRLittleEndian, VOILUTSequence=pydicom.Sequence([table])))
    return made


def _videos() -> list[bytes]:
    import av

    kinds = [
        ("mp4", "mpeg4", "yuv420p"), ("mp4", "libx264", "yuv420p"), ("mov", "mjpeg", "yuvj420p"),
        ("avi", "mpeg4", "yuv420p"), ("avi", "rawvideo", "rgb24"), ("matroska", "ffv1", "gray"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("mpegts", "mpeg2video", "yuv420p"), ("mpeg", "mpeg1video", "yuv420p"), ("mpeg1video", "mpeg1video", "yuv420p"),
    ]  # fmt: skip
    made = []
    for container, codec, pixels in kinds:
        out = io.BytesIO()
        with av.open(out, "w", format=container, options={"fflags": "+bitexact"}) as file:
            stream: Any = file.add_stream(codec, rate=25, options={"threads": "1", "flags": "+bitexact"})
            stream.width, stream.height, stream.pix_fmt = 32, 32, pixels
            for i in range(6):
                picture = np.resize(_picture(3, i), (32, 32, 3))
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture).reformat(format=pixels)))
            file.mux(stream.encode())
        made.append(out.getvalue())
    return made


NAMES = [f"{'deep/' * (i % 2)}{i}.png" for i in range(8)]  # of the pictures that lie beside the manifests
ROWS = [
    ("path", "label", "split", "group", "frame"),
    *((n, "Ünï", "train", "a,b", str(i)) for i, n in enumerate(NAMES)),
]


def _lists() -> list[bytes]:
    plain = "\n".join(NAMES)
    return [
        plain.encode(),
        f"# a list\n\n{plain}\r\n".encode(),
        plain.encode("utf-16"),
        "\n".join(map(str, range(8))).encode(),
    ]


def _tables(delimiter: str) -> list[bytes]:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(ROWS)
    quoted = io.StringIO()
    csv.writer(quoted, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(ROWS)
    return [out.getvalue().encode(), quoted.getvalue().encode("utf-8-sig"), out.getvalue().encode("utf-16")]


def _parquets() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: list(column) for name, column in zip(ROWS[0], zip(*ROWS[1:], strict=True), strict=True)}
    made = []
    for how in (
        {},
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd", "data_page_version": "2.0"},
    ):
        out = io.BytesIO()
        pq.write_table(pa.table(columns | {"frame": pa.array(range(8)), "label": pa.array([1.5] * 8)}), out, **how)
        made.append(out.getvalue())
    return made


def _zips() -> list[bytes]:
    made = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name in (*NAMES[:4], "notes.txt", "images/1.jpg", "masks/1.png"):
                data = by_pillow("JPEG" if name.endswith("jpg") else "PNG", "RGB")
                archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, method)
        made.append(out.getvalue())
    return made


def _tars() -> list[bytes]:
    made = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
            text = json.dumps({"label": "cat", "group": 3, "frame": 7}).encode()
            for name, data in (
                *((name, by_pillow("PNG", "L")) for name in NAMES[:3]), ("0.json", text), ("0.cls", b"3"),
                ("a" * 90 + "/" + "b" * 90 + ".png", by_pillow("PNG", "L")), ("é.jpg", by_pillow("JPEG", "RGB")),
            ):  # fmt: skip
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, NAMES[0]
            tar.addfile(link)
        made.append(out.getvalue())
    return made


def _boxes() -> list[bytes]:
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>6</xmax><ymax>9</ymax></bndbox>"
    objects = f"<object><name>cell</name>{box}</object>" * 3
    voc = f"<annotation><size><width>24</width><height>20</height></size>{objects}</annotation>"
    return [
        b"0 0.5 0.5 0.2 0.2\n1 0.25 0.5 0.1 0.9 0.99\n",
        voc.encode(),
        f"<?xml version='1.0'?>{voc}".encode("utf-16"),
    ]


CORPUS: dict[str, tuple[str, Callable[[], list[bytes]]]] = {
    "JPEG": (".jpg", _jpegs),
    "PNG": (".png", _pngs),
    "WEBP": (".webp", lambda: [by_pillow("WEBP", "RGB"), by_pillow("WEBP", "RGBA", lossless=True), _frames("WEBP"),
                               by_pillow("WEBP", "RGB", exif=_exif(3))]),
    "GIF": (".gif", lambda: [by_pillow("GIF", "L"), by_pillow("GIF", "P"), _frames("GIF")]),
    "BMP": (".bmp", lambda: [by_pillow("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")]),
    "TIFF": (".tif", _tiffs),
    "NPY": (".npy", _arrays),
    "DICOM": (".dcm", _dicoms),
    "VIDEO": (".mp4", _videos),
    "LIST": (".txt", _lists),
    "CSV": (".csv", lambda: _tables(",")),
    "TSV": (".tsv", lambda: _tables("\t")),
    "PARQUET": (".parquet", _parquets),
    "ZIP": (".zip", _zips),
    "TAR": (".tar", _tars),
    "BOXES": (".xml", _boxes),
}  # fmt: skip
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "NPY", "DICOM", "VIDEO")
