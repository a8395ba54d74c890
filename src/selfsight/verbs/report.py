"""report: one page that says whether a run is working, and shows why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.report.verdict import Verdict


@dataclass(frozen=True)
class Report(Result):
    """The result of `report`.

    report: the file.
    verdict: on the run.
    items: how many images the run learnt from.
    """

    report: str
    verdict: Verdict
    items: int


@checked
def report(
    run: str,
    *,
    out: str | None = None,
    thumbnails: bool = True,
    names: bool = True,
    private: bool = False,
    device: str | None = None,
) -> Report:
    """Write one web page about a run: is it working, what did it learn, what to do next.

    The page is a single file that loads nothing from any network, so it can be mailed or archived.
    It holds the verdict, the curves, a map of your images, their nearest neighbours, the recipe
    with its reasons, and the evaluation if `selfsight evaluate` was run before.

    Parameters
    ----------
    run
        Folder of a run, made by `selfsight pretrain`; it may still be training.
    out
        File to write, instead of report.html in the folder of the run.
    thumbnails
        Small copies of your images on the page; `--no-thumbnails` leaves every one out.
    names
        File names, ids, and the paths of images and run; `--no-names` leaves every one out. Names of classes stay.
    private
        For a page that may travel: the same as `--no-thumbnails --no-names`.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from pathlib import Path

    from selfsight.data.written import note
    from selfsight.errors import MachineError, SelfsightError
    from selfsight.files import write_whole
    from selfsight.report.page import build
    from selfsight.training.run import Run

    opened = Run.open(run)
    path = Path(out) if out else opened.path / "report.html"
    if path.is_dir():
        raise SelfsightError(f"{path} is a folder. Give the file to write: -o {path / 'report.html'}")
    if not path.parent.is_dir():
        raise SelfsightError(f"The folder {path.parent} does not exist. Make it, or give another -o.")
    page, verdict, items = build(opened, thumbnails and not private, names and not private)
    try:
        write_whole(path, page)
        if out:
            note("pictures", path, Path(str(opened.read_recipe()[2]["collection"])))
    except OSError as error:
        raise MachineError(f"Cannot write {path}: {error.strerror}. Give another -o.") from None
    return Report(str(path), verdict, items)


def show(result: Report) -> None:
    """Print the verdict and where the page is."""
    from selfsight.console import results

    console = results(soft_wrap=True)
    console.print(result.verdict.sentence)
    console.print(f"The page, to open in any browser: {result.report}")
