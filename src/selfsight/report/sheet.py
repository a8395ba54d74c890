"""A contact sheet: pictures in rows, with a few words under each."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont, ImageOps

COLUMNS, TILE, GAP, LINE = 8, 160, 8, 16  # px
GROUND, INK = "white", "black"


def contact_sheet(pictures: list[Image.Image], captions: list[list[str]]) -> bytes:
    """A PNG of the pictures in reading order, 8 in a row, each with its lines of caption.

    Small pictures are enlarged. Of a line that is too long the end is shown, as a path ends with the name.
    """
    lines = max(map(len, captions))
    width, height = TILE + GAP, TILE + lines * LINE + GAP
    columns, rows = min(COLUMNS, len(pictures)), -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (GAP + columns * width, GAP + rows * height), GROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = GAP + i % COLUMNS * width, GAP + i // COLUMNS * height
        tile = ImageOps.contain(picture.convert("RGB"), (TILE, TILE), Image.Resampling.NEAREST)
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        for n, line in enumerate(caption):
            draw.text((x, y + TILE + n * LINE), _fitted(line, font), INK, font)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _fitted(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of `line` that fits under a tile."""
    shown = line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    while line and font.getlength(shown) > TILE:
        line = line[1:]
        shown = f"…{line}"
    return shown
