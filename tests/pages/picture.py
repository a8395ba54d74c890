"""docs/label.png anew: python tests/pages/picture.py"""

from __future__ import annotations

import io
import os
import re
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image, ImageColor
from plates import KINDS, write_plates
from selenium import webdriver

from selfsight import pages
from selfsight.data.canvases import measure_format
from selfsight.data.importers import open_source
from selfsight.encoders.features import pooled
from selfsight.encoders.weights import encoder_of
from selfsight.pages.answers import Answers
from selfsight.pages.label import labelling
from selfsight.pages.neighbours import Neighbours, Watch
from selfsight.pages.pictures import Pictures
from selfsight.pages.server import Server

OUT = Path(__file__).parents[2] / "docs" / "label.png"
WIDTH, HEIGHT, GREYS = 1280, 760, 64
LABELLED, MOST_BYTES = 46, 200_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SELFSIGHT_CACHE"] = f"{folder}/cache"
        items = open_source(write_plates(Path(folder) / "plates", 120))
        answers = Answers(items, "anna")
        uris = dict(zip(items.usable["id"].to_pylist(), items.usable["uri"].to_pylist(), strict=True))
        kinds = {item: KINDS[int(re.findall(r"\d+", uri)[0]) % len(KINDS)] for item, uri in uris.items()}
        rows, features, _ = pooled(encoder_of("package:efficientnet_lite0", measure_format(items)), items)
        suggest = Neighbours(rows["id"].to_pylist(), features, answers)
        watch = Watch(suggest, answers)
        order = list(answers.ids)
        scratch = next(i for i, item in enumerate(order) if i > LABELLED and kinds[item] == "scratch")
        order[LABELLED], order[scratch] = order[scratch], order[LABELLED]
        for item in order[:LABELLED]:
            answers.give(item, [kinds[item]])
            watch.answered()
        server = Server(labelling(answers, Pictures(items), order, "/data/plates", suggest, watch))
        threading.Thread(target=server.run, daemon=True).start()
        png = screenshot(server.address)
        server.stop()
    reduced(Image.open(io.BytesIO(png)).convert("RGB")).save(OUT, optimize=True)
    assert OUT.stat().st_size < MOST_BYTES, OUT.stat().st_size


def reduced(image: Image.Image) -> Image.Image:
    """The picture in greys and the colours of the style sheet."""
    named = re.findall(r"#[0-9a-f]{6}\b", (Path(pages.__file__).parent / "page.css").read_text())
    greys = [(value,) * 3 for value in range(20, 240, 256 // GREYS)]
    colours = [*greys, *(ImageColor.getrgb(name) for name in named)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in colours for part in colour])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def screenshot(address: str) -> bytes:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(address)
    time.sleep(8)
    try:
        return driver.get_screenshot_as_png()
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
