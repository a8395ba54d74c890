"""Pascal VOC: one XML file per image. Edges are numbers of pixels, counted from 1, and the last pixel is inside."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from selfsight.data.boxes import Box, Boxes

_FLAGS = ("truncated", "difficult", "iscrowd")  # the last is ours, written only where it is set


class _NoDoctype(ET.TreeBuilder):
    """Entities, by which XML swells or reads other files, can only be declared in a DOCTYPE."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("a document type is declared")


def read(data: bytes) -> Boxes:
    """The boxes of a file, in pixels of an image of the size that it states: x0 = xmin - 1, x1 = xmax.

    Raises `ValueError` for anything but a VOC file, and for the whole file if one box of it is malformed.
    """
    try:
        root = ET.fromstring(data, ET.XMLParser(target=_NoDoctype()))
    except (ET.ParseError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise ValueError(str(error)) from None
    size = _number(root, "size/width"), _number(root, "size/height")
    return Boxes(tuple(_box(thing) for thing in root.findall("object")), size)


def write(boxes: Sequence[Box], width: int, height: int, filename: str = "", channels: int = 3) -> bytes:
    """The file that `read` turns into these boxes of an image of this size."""
    root = ET.Element("annotation")
    if filename:
        _add(root, "filename", filename)
    size = ET.SubElement(root, "size")
    for name, value in (("width", width), ("height", height), ("depth", channels)):
        _add(size, name, str(value))
    for box in boxes:
        thing = ET.SubElement(root, "object")
        _add(thing, "name", box.label)
        for flag in _FLAGS:
            if flag != "iscrowd" or box.iscrowd:
                _add(thing, flag, str(int(getattr(box, flag))))
        edges = ET.SubElement(thing, "bndbox")
        for name, edge in (("xmin", box.x0 + 1), ("ymin", box.y0 + 1), ("xmax", box.x1), ("ymax", box.y1)):
            _add(edges, name, repr(int(edge)) if edge == int(edge) else repr(float(edge)))
    ET.indent(root)
    return bytes(ET.tostring(root, "utf-8")) + b"\n"


def _box(thing: ET.Element) -> Box:
    left, top, right, bottom = (_number(thing, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax"))
    flags = {flag: (thing.findtext(flag) or "").strip().lower() in ("1", "true", "yes") for flag in _FLAGS}
    return Box((thing.findtext("name") or "").strip(), left - 1, top - 1, right, bottom, **flags)


def _number(parent: ET.Element, path: str) -> float:
    return float(parent.findtext(path) or "missing")


def _add(parent: ET.Element, name: str, text: str) -> None:
    ET.SubElement(parent, name).text = text
