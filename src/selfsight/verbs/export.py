"""export: a head or an encoder as one ONNX file, proved on real images, for machines without selfsight."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from selfsight.errors import DataError, SelfsightError
from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import pyarrow as pa

    from selfsight.data.collection import Collection
    from selfsight.data.labels import Labels
    from selfsight.deploy.proof import Proof
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.head import Head


@dataclass(frozen=True)
class Exported(Result):
    """The result of `export`.

    file: the ONNX file; NAME.json and run.py are beside it. task: "encode" of an encoder alone. digest: of the head or
    encoder. precision: as asked. kept: how many of the layers that can be of less precision stay in float32, and how
    many there are. proof: how it compares with the original. licence: of the weights. notes: what a user must know.
    """

    file: str
    task: str
    digest: str
    precision: str
    kept: tuple[int, int]
    proof: Proof
    licence: str
    notes: list[str]


@checked
def export(
    model: str | Head | Encoder,
    *,
    out: str,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    calibrate: str | None = None,
    labels: str | None = None,
) -> Exported:
    """Write a head, or an encoder alone, as one ONNX file that runs without selfsight and without PyTorch.

    Own-depth pixels of the input's size go in, named tensors come out; window, normalisation, whitening, thresholds and
    calibration are inside. Beside NAME.onnx are NAME.json, which says in words and numbers how a picture becomes the
    input, and run.py, which does it: python run.py IMAGE… prints what `selfsight predict` says, and needs numpy, Pillow
    and onnxruntime only. The file is kept only if it says the same as the original on real images.

    Parameters
    ----------
    model
        A head, a run, an encoder folder, a .safetensors file with timm's config.json beside it, timm:NAME (or NAME
        alone), torchvision:NAME or package:NAME.
    out
        The file, NAME.onnx.
    precision
        fp32: as trained. fp16: half the size, for graphics cards. int8: a quarter of the size and faster on most
        processors; layers for which it costs more than a point of agreement stay in fp32.
    calibrate
        Images by which the export is proved, and for int8 the ranges are found: a folder, or any other source. If not
        given, those that the head or the run learnt from.
    labels
        A CSV or Parquet with the columns label and path or id, to measure what int8 costs. If not given: the column
        `label`, or else the names of the outermost folders.
    """
    from selfsight.data.importers import check_outside
    from selfsight.deploy.export import exported
    from selfsight.deploy.graphs import check_installed

    path = Path(out).expanduser()
    if path.suffix != ".onnx":
        raise SelfsightError(
            f"The name of the file ends in .onnx, and {out} does not. Give -o {path.stem or 'NAME'}.onnx"
        )
    check_installed()
    opened, items, rows = _opened(model, calibrate)
    check_outside(out, items.about.location)
    known = _labels(opened, items, labels)
    made = exported(opened, path, precision, items, rows, known)
    if calibrate is None:
        made.notes.append("The images are those that it learnt from; give others, which it has not seen: --calibrate")
    return Exported(
        str(path), str(made.about["task"]), str(made.about["digest"]), precision, made.kept, made.proof,
        str(made.about["licence"]), made.notes,
    )  # fmt: skip


def _opened(model: str | Head | Encoder, calibrate: str | None) -> tuple[Head | Encoder, Collection, pa.Table]:
    """The head or the encoder, and the collection and rows by which it is proved."""
    import json

    import pyarrow.compute as pc

    from selfsight.data.canvases import measure_format
    from selfsight.data.collection import Collection
    from selfsight.data.importers import open_source
    from selfsight.encoders.weights import load
    from selfsight.heads.head import Head, head_folder, load_head

    items = None if calibrate is None else open_source(calibrate)
    folder = model.path if isinstance(model, Head) else head_folder(model)
    opened: Head | Encoder
    if isinstance(model, str):
        opened = load_head(model) if folder else load(model, None if items is None else measure_format(items))
    else:
        opened = model
    if items is not None:
        return opened, items, items.usable
    path = None
    if folder is not None:
        path = json.loads((folder / "lineage.json").read_text(encoding="utf-8")).get("collection")
    elif isinstance(model, str) and (Path(model).expanduser() / "recipe.yaml").is_file():
        from selfsight.training.run import Run

        path = str(Run.open(Path(model).expanduser()).read_recipe()[2]["collection"])
    if path is None or not Collection.exists(Path(path)):
        raise DataError(
            "An export is proved on images, and those that it learnt from are not known. Give some: --calibrate"
        )
    items = Collection.open(path)
    rows = items.usable
    if isinstance(opened, Head):
        rows = rows.filter(pc.is_in(rows["id"], opened.items["id"].combine_chunks()))
    if not len(rows):
        raise DataError(
            f"Of the items that it learnt from none is left in {path}. Give some images: --calibrate SOURCE"
        )
    return opened, items, rows


def _labels(model: Head | Encoder, items: Collection, path: str | None) -> Labels | None:
    """The labels by which less precision is measured; None where there are none."""
    from selfsight.data.labels import Labels
    from selfsight.heads.classify_head import ClassifyHead
    from selfsight.heads.inspect_head import InspectHead

    if not isinstance(model, ClassifyHead | InspectHead):
        return None
    try:
        kind = model.about.kind if isinstance(model, ClassifyHead) else "class"
        return Labels.of(items, path=path, kind=kind)
    except SelfsightError:
        if path is not None:
            raise
        return None


def show(result: Exported) -> None:
    """Print what the export is worth beside the original, and how it is used."""
    from selfsight.console import results, table

    console, proof = results(soft_wrap=True), result.proof
    rows = [("images", f"{proof.images:,}"), ("same decision", f"{100 * proof.agreement:.2f} %")]
    rows.append(("largest difference of a score", f"{proof.difference:.2g}"))
    if proof.cosine is not None:
        rows.append(("least cosine of features", f"{proof.cosine:.4f}"))
    if proof.miou is not None:
        rows.append(("intersection over union with its masks", f"{proof.miou:.4f}"))
    if proof.figure is not None:
        rows.append((f"{proof.figure} on {proof.labelled:,} labelled", f"{proof.before:.4f} -> {proof.after:.4f}"))
    rows.append(("size", f"{proof.bytes / 1e6:.1f} MB"))
    for threads, pace in (proof.pace or {}).items():
        what = "1 thread" if threads == "1" else "all threads"
        rows.append((f"an image, {what}", f"{pace.p50:.1f} ms (95 %: {pace.p95:.1f} ms)"))
    if result.precision == "int8":
        rows.append(("layers kept in fp32", f"{result.kept[0]} of {result.kept[1]}"))
    table((f"{result.task}, {result.precision}", "beside the original"), rows)
    for note in result.notes:
        console.print(note)
    folder = Path(result.file).parent
    console.print(
        f"Written to {shlex.quote(result.file)}. To use it: python {shlex.quote(str(folder / 'run.py'))} IMAGE"
    )
