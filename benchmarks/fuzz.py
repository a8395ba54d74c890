"""Broken bytes by the hundred thousand, through what every import and every decoding calls.

    python benchmarks/fuzz.py        # 100,000 inputs of each format, 20,000 of each kind of manifest
    python benchmarks/fuzz.py TIFF CSV --inputs 1000
    python benchmarks/fuzz.py --show TIFF 4711 > input.tif

An input is a small good file of `fuzz_corpus`, cut, spliced and overwritten; how follows from seed, kind and number. It
must end as pixels of the size that its header says, set aside with a reason, or counted as another file. Any other
exception, a crash, or `SECONDS` of the clock without an answer is a failure, kept under --work with its number. What
needs more than `MEMORY` is not: the readers meet a `MemoryError`, and it is among those set aside. What was checked is
kept under --work too, and is not checked again. One row a kind in results/fuzz.jsonl; its times are of the processor,
since other programs share it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fuzz_corpus import CORPUS, NAMES, by_pillow

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "fuzz.jsonl"
SECONDS = 60  # an input may take, while other programs use the machine
MEMORY = 8 * 2**30  # bytes of addresses that a worker may use; Lance alone takes more than two
BLOCK = 5000  # inputs, after which what was checked is kept
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "NPY", "DICOM", "VIDEO")

# -- mutation --

NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1,
           2**40, 2**63 - 1, 2**64 - 1)  # fmt: skip
# Words that mean something to the readers, written over or between the bytes.
WORDS = {
    "JPEG": "ff01 ffc0 ffc2 ffc3 ffc4 ffd8 ffd9 ffda ffdb ffdd ffe1 ffe2 ffee fffe",
    "PNG": "IHDR IDAT IEND PLTE tRNS gAMA iCCP zTXt iTXt eXIf acTL fcTL fdAT",
    "WEBP": "RIFF WEBP 'VP8 ' VP8L VP8X ALPH ANIM ANMF EXIF ICCP",
    "GIF": "21f9 21ff 21fe 2c 3b 00 ff NETSCAPE2.0",
    "BMP": "BM 0c000000 28000000 34000000 6c000000 7c000000 01000000 02000000 03000000 04000000",
    "TIFF": "0001 0101 0201 0301 0601 1101 1501 1701 1c01 3d01 4201 4301 4401 4501 5201 5301 fe00 <OME ImageJ=",
    "NPY": "|O |V8 <f8 >u2 <c8 |b1 <U3 <M8 <f16 True False (0,) (3,3) () (99999999999,2) 'shape' 'descr': 0200 0300",
    "DICOM": "SQ UN OB OW US SS DS IS ffffffff feff00e0 feff0de0 feffdde0 28000010 28000200 28000800 28000400 e07f1000",
    "VIDEO": "moov trak mdia stbl stsd stts ctts stsc stsz stco mdat ftyp moof elst tkhd 1a45dfa3 18538067 RIFF 'AVI '",
    "LIST": "../ / // \\ 00 ~ . .. # feff fffe * {0} png :// 0a 0d 0d0a",
    "CSV": "22 2c 3b 09 0a 0d 00 feff ../ / path label 2222 22220a 1e999 nan -1 ed a0",
    "TSV": "22 2c 3b 09 0a 0d 00 feff ../ / path label 2222 22220a 1e999 nan -1 ed a0",
    "PARQUET": "PAR1 PARE 00 15 18 19 1c 2c 16 28 path",
    "ZIP": "504b0304 504b0102 504b0506 504b0606 504b0607 0100 0800 0c00 0e00 6300 ../ .png / 00",
    "TAR": "ustar GNU 00 30 31 32 35 78 67 4c 4b 53 80 'path=' 'size=' 'hdrcharset=' ../ .png .json",
    "BOXES": "<!DOCTYPE <!ENTITY &amp; <object> </object> nan inf -1 1e999 1e-400 0a encoding='utf-7' 00 <name/>",
}  # fmt: skip


def words(kind: str) -> list[bytes]:
    """`WORDS` as bytes: hexadecimal where they are, quoted where they hold a space."""
    found = (a or b for a, b in re.findall(r"'([^']*)'|(\S+)", WORDS[kind]))
    return [bytes.fromhex(w) if re.fullmatch(r"([0-9a-f]{2})+", w) else w.encode() for w in found]


def mutated(kind: str, corpus: list[bytes], seed: int, number: int) -> bytes:
    """Input `number`: up to four changes, most of them near the beginning, where headers are, or the end."""
    draw = random.Random(f"{seed} {kind} {number}")
    data = bytearray(draw.choice(corpus))
    for _ in range(draw.choice((1, 1, 2, 3, 4))):
        reach = min(len(data), draw.choice((64, 200, 600, 2**20)))
        at = draw.randrange(reach + 1)
        if draw.random() < (0.6 if kind in ("ZIP", "PARQUET") else 0.2):
            at = len(data) - at
        _change(draw, data, at, words(kind), corpus)
    if kind in CHECKSUMS and draw.random() < 0.7:
        CHECKSUMS[kind](data)
    return bytes(data[: 2**16])


def _change(draw: random.Random, data: bytearray, at: int, tokens: list[bytes], corpus: list[bytes]) -> None:
    """One change at a place."""
    how = draw.randrange(11)
    length = draw.choice((1, 2, 4, 8, 30, 200))
    if how == 0 and at < len(data):
        data[at] ^= 1 << draw.randrange(8)
    elif how == 1:
        data[at : at + length] = draw.randbytes(length)
    elif how in (2, 3):  # a length, an offset or a count that is not true
        width = draw.choice((1, 2, 2, 4, 4, 4, 8))
        order: Literal["little", "big"] = draw.choice(("little", "big"))
        value = int.from_bytes(data[at : at + width], order)
        near = (
            value + 1,
            value - 1,
            value * 2,
            value // 2,
            value ^ (1 << draw.randrange(8 * width)),
            len(data),
            len(data) - at,
        )
        value = draw.choice(draw.choice((NUMBERS, near)))
        data[at : at + width] = (value % 256**width).to_bytes(width, order)
    elif how == 4:
        del data[at:]
    elif how == 5:
        del data[at : at + length]
    elif how == 6:
        data[at:at] = data[at : at + length] * draw.choice((1, 1, 2, 50))
    elif how == 7:  # a piece of this or of another file
        other = draw.choice((data, draw.choice(corpus)))
        start = draw.randrange(len(other) + 1)
        data[at : at + length * draw.randrange(2)] = other[start : start + length]
    elif how == 8:  # the head of this and the tail of another
        data[at:] = draw.choice(corpus)[at:]
    else:
        token = draw.choice(tokens)
        data[at : at + len(token) * draw.randrange(2)] = token


def _of_chunks(data: bytearray) -> None:
    """Give the chunks of a PNG the checksums that their bytes have, so that readers look further."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4


def _of_members(data: bytearray) -> None:
    """The same for the headers of a tar."""
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


CHECKSUMS = {"PNG": _of_chunks, "TAR": _of_members}

# -- what must hold --


class Wrong(Exception):
    """An input that was read, but not as it must be."""


def check(kind: str, data: bytes, folder: Path, number: int) -> str:
    """What became of one input: "ok", "set_aside" or "other". Raises whatever the product raises, and `Wrong`.

    `folder` holds nothing but what was made by `prepare`, and keeps nothing.
    """
    if kind in FORMATS:
        path = folder / f"input{CORPUS[kind][0]}"
        path.write_bytes(data)
        return _check_image(path, kind, number)
    return _check_manifest(kind, data, folder, number)


def prepare(folder: Path) -> None:
    """The pictures that manifests name."""
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / name).write_bytes(by_pillow("PNG", "RGB"))


def _check_image(path: Path, kind: str, number: int) -> str:
    from selfsight.data.items import rows_of
    from selfsight.data.sources.folder import FolderSource
    from selfsight.data.sources.source import Entry, Options

    source = FolderSource(str(path.parent), Options(rate=None if number % 2 else 1.0))
    stat = path.stat()
    keywords = {"patient": "PatientID"} if kind == "DICOM" else {}
    return _check_rows(
        source, rows_of(source, Entry(path.name, stat.st_size, stat.st_mtime_ns), keywords), keywords, number
    )


def _check_rows(source: Any, rows: list[dict[str, Any]], columns: dict[str, str], number: int) -> str:
    """Rows as a table takes them, and the pixels of the first few in one of several forms."""
    import pyarrow as pa

    from selfsight.data.collection import schema_with
    from selfsight.data.decoding import read_items
    from selfsight.data.formats.format import Unreadable
    from selfsight.data.pixels import PixelFormat, common_format

    rows = pa.Table.from_pylist(rows, schema=schema_with(columns)).to_pylist()
    if rows[0]["status"] != "ok":
        if not rows[0]["reason"]:
            raise Wrong("set aside without a reason")
        return str(rows[0]["status"])
    rows = rows[:3] + rows[-1:] * (len(rows) > 3)
    own = common_format([rows[0]["mode"]], [rows[0]["depth"]])
    window = {8: (0.0, 255.0), 16: (0.0, 65535.0), 32: (-10.0, 10.0)}
    forms = (
        PixelFormat(own.mode, own.depth, window[own.depth]),
        PixelFormat("RGB", 8, window[8]),
        PixelFormat("L", 32, window[32]),
    )
    want = forms[number % 3]
    short, square = ((None, None), (12, None), (None, 16))[number // 3 % 3]
    fine = False
    for row, pixels in zip(rows, read_items(source, rows, want, short, square), strict=True):
        if isinstance(pixels, Unreadable):
            if not str(pixels):
                raise Wrong("unreadable without a reason")
            continue
        fine = True
        size = (square, square) if square else (row["height"], row["width"])
        if pixels.shape[2] != want.channels or (short is None and pixels.shape[:2] != size):
            raise Wrong(f"pixels of {pixels.shape}, where the header says {size} and {want} is asked for")
        if pixels.dtype != {8: np.uint8, 16: np.uint16, 32: np.float32}[want.depth] or not np.isfinite(pixels).all():
            raise Wrong(f"pixels of {pixels.dtype}, some of them perhaps not finite")
    return "ok" if fine else "set_aside"


def _check_manifest(kind: str, data: bytes, folder: Path, number: int) -> str:
    from selfsight.data.importers import import_source
    from selfsight.data.items import rows_of
    from selfsight.data.sources.choose import make_source
    from selfsight.data.sources.source import Options
    from selfsight.errors import SelfsightError

    path, columns = folder / f"input{CORPUS[kind][0]}", {"site": "{0}"} if number % 2 else {}
    if kind == "BOXES":
        boxes = "boxes.xml" if b"<" in data else "boxes.txt"
        (folder / boxes).write_bytes(data)
        path, columns, data = folder / "input.csv", {"boxes": "shape"}, f"path,shape\n0.png,{boxes}\n".encode()
    path.write_bytes(data)
    try:
        source = make_source(str(path), Options(columns=columns))
        entries = list(source.entries())
        if len({entry.uri for entry in entries}) < len(entries):
            raise Wrong("two entries of one name")
        became = [_check_rows(source, rows_of(source, entry, {}), columns, number) for entry in entries[:10]]
        if number % 50 == 0:
            import_source(make_source(str(path), Options(columns=columns)), folder / "out.lance")
    except SelfsightError as error:
        if not str(error) or "\n" in str(error):
            raise Wrong(f"not one sentence: {error}") from None
        return "other"
    finally:
        shutil.rmtree(folder / "out.lance", ignore_errors=True)
        shutil.rmtree(folder / "out.lance.partial", ignore_errors=True)
    return "ok" if "ok" in became else "set_aside"


# -- a worker, which may die --


def work(kind: str, folder: Path, seed: int, first: int, end: int) -> None:
    """Check inputs, saying on stdout which one is begun and what became of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    corpus = read_corpus(folder, kind)
    here = folder / f"worker-{kind}"
    prepare(here)
    for data in corpus:  # imports and caches are not the time of an input, and what is good must be read
        became = check(kind, data, here, 0)
        assert became == "ok", f"a good {kind} is {became}"
    for number in range(first, end):
        print(json.dumps({"begin": number}), flush=True)
        began = time.process_time()
        row: dict[str, Any] = {"end": number}
        try:
            row["became"] = check(kind, mutated(kind, corpus, seed, number), here, number)
        except Exception:
            row |= {"became": "raised", "trace": traceback.format_exc()}
        row["ms"] = 1000 * (time.process_time() - began)
        print(json.dumps(row), flush=True)
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


def read_corpus(folder: Path, kind: str) -> list[bytes]:
    """The good files of a kind, made once: some encoders draw from the clock."""
    kept = folder / "corpus" / kind
    if not kept.exists():
        partial = folder / "corpus" / f"{kind}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        for i, data in enumerate(CORPUS[kind][1]()):
            (partial / f"{i:02d}").write_bytes(data)
        partial.rename(kept)
    return [path.read_bytes() for path in sorted(kept.iterdir())]


# -- the parent, which may not --


def block(kind: str, folder: Path, seed: int, first: int, end: int) -> dict[str, Any]:
    """Check inputs `first` to `end`, in as many workers as it takes, and count what became of them."""
    counts: Counter[str] = Counter()
    done: dict[str, Any] = {"slowest_ms": 0.0, "slowest": first, "peak_mb": 0.0, "seconds": 0.0, "failures": []}
    while first < end:
        begun, why = first, "crashed"
        for message in _messages(kind, folder, seed, first, end):
            begun = message.get("begin", begun)
            why = message.get("stopped", why)
            done["peak_mb"] = max(done["peak_mb"], message.get("peak_mb", 0.0))
            if "end" in message:
                first = message["end"] + 1
                counts[message["became"]] += 1
                done["seconds"] += message["ms"] / 1000
                if message["ms"] > done["slowest_ms"]:
                    done |= {"slowest_ms": message["ms"], "slowest": message["end"]}
                if message["became"] == "raised":
                    done["failures"].append({"number": message["end"], "why": "raised", "trace": message["trace"]})
        if first < end:  # the worker is gone
            counts[why] += 1
            done["failures"].append({"number": begun, "why": why})
            first = begun + 1
    return {"kind": kind, "seed": seed, "end": end, **counts, **done}


def _messages(kind: str, folder: Path, seed: int, first: int, end: int) -> Iterator[dict[str, Any]]:
    """What a worker says, until it is done, dies or says nothing for too long.

    It writes into a file: with a pipe the two would take turns at every line.
    """
    command = [sys.executable, __file__, "--worker", kind, "--work", str(folder), "--seed", str(seed)]
    said, log = folder / f"worker-{kind}.jsonl", folder / f"worker-{kind}.log"
    with said.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen([*command, "--range", f"{first}:{end}"], stdout=stdout, stderr=stderr)
    with said.open("rb") as file:
        heard, alive, rest = time.monotonic(), True, b""
        while alive:
            time.sleep(0.1)
            alive = process.poll() is None
            *lines, rest = (rest + file.read()).split(b"\n")
            yield from map(json.loads, lines)
            heard = time.monotonic() if lines else heard
            if time.monotonic() - heard > SECONDS:
                process.kill()
                yield {"stopped": "hung"}
                break
    process.wait()


def run(kind: str, folder: Path, seed: int, inputs: int) -> dict[str, Any]:
    """A row: blocks that were checked before are not checked again."""
    ledger = folder / f"blocks-{kind}.jsonl"
    blocks = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    blocks = [b for b in blocks if b["seed"] == seed and b["end"] <= inputs]
    known, began, fresh = {b["end"] for b in blocks}, time.monotonic(), 0
    for first in range(0, inputs, BLOCK):
        end = min(first + BLOCK, inputs)
        if end in known:
            continue
        blocks.append(block(kind, folder, seed, first, end))
        with ledger.open("a") as file:
            file.write(json.dumps(blocks[-1]) + "\n")
        fresh += end - first
        rate = fresh / (time.monotonic() - began)
        bad = sum(len(b["failures"]) for b in blocks)
        left = f"{(inputs - end) / rate / 60:.0f} min left"
        print(f"{kind} {end:,} of {inputs:,}: {rate:.0f} a second, {left}, {bad} failures", flush=True)
    corpus = read_corpus(folder, kind)
    for failure in (failure for b in blocks for failure in b["failures"]):
        path = folder / "failures" / f"{kind}-{failure['number']}{CORPUS[kind][0]}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutated(kind, corpus, seed, failure["number"]))
        path.with_suffix(".log").write_text(failure["why"] + "\n" + failure.get("trace", ""))
    return _row(kind, seed, inputs, blocks)


def _row(kind: str, seed: int, inputs: int, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    from selfsight.machine import environment

    slowest = max(blocks, key=lambda b: b["slowest_ms"])
    row = {"format": kind, "seed": seed, "inputs": inputs}
    row |= {name: sum(b.get(name, 0) for b in blocks) for name in ("ok", "set_aside", "other")}
    row |= {
        name: sum(b.get(key, 0) for b in blocks)
        for name, key in (("crashes", "crashed"), ("hangs", "hung"), ("raised", "raised"))
    }
    row |= {"seconds": round(sum(b["seconds"] for b in blocks), 1), "slowest_ms": round(slowest["slowest_ms"], 1)}
    row |= {"slowest": slowest["slowest"], "peak_mb": round(max(b["peak_mb"] for b in blocks))}
    machine = environment("cpu")
    return row | {"machine": machine["processor"], "cores": machine["cores"], "python": machine["python"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*CORPUS, []], help="all, if none is named")
    parser.add_argument(
        "--inputs", type=int, help="of each kind; 100,000 of formats and 20,000 of manifests if not given"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-fuzz")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--show", nargs=2, metavar=("KIND", "NUMBER"), help="write one input to stdout")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--range", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        first, end = map(int, arguments.range.split(":"))
        return work(arguments.worker, arguments.work, arguments.seed, first, end)
    if arguments.show:
        kind, number = arguments.show
        data = mutated(kind, read_corpus(arguments.work, kind), arguments.seed, int(number))
        sys.stdout.buffer.write(data)
        return None
    for kind in arguments.kinds or CORPUS:
        row = run(kind, arguments.work, arguments.seed, arguments.inputs or (100_000 if kind in FORMATS else 20_000))
        rows = (
            [json.loads(line) for line in arguments.results.read_text().splitlines()]
            if arguments.results.exists()
            else []
        )
        rows = [r for r in rows if (r["format"], r["seed"]) != (kind, arguments.seed)] + [row]
        arguments.results.parent.mkdir(exist_ok=True)
        arguments.results.write_text("".join(json.dumps(r) + "\n" for r in rows))
        print(json.dumps(row), flush=True)
    return None


if __name__ == "__main__":
    main()
