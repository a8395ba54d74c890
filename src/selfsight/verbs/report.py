"""report: one page that says whether a run is working, or what a head is worth, and shows why."""

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
    verdict: on the run or the head.
    items: how many images it learnt from.
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
    """Write one web page about a run: is it working, what did it learn, what to do next. Or about a head.

    The page is a single file that loads nothing from any network, so it can be mailed or archived.
    It holds the verdict, the curves, a map of your images, their nearest neighbours, the recipe
    with its reasons, and the evaluation if `selfsight evaluate` was run before. Of a head it holds
    its figures, its confusions and surest mistakes, or the pictures it is worst and best at, what it
    learnt from and how to use it.

    Parameters
    ----------
    run
        Folder of a run, made by `selfsight pretrain`, which may still be training; or of a head.
    out
        File to write, instead of report.html in the folder of the run or the head.
    thumbnails
        Small copies of your images on the page; `--no-thumbnails` leaves every one out.
    names
        File names, ids, and the paths of images, run or head; `--no-names` leaves all out. Names of classes stay.
    private
        For a page that may travel: the same as `--no-thumbnails --no-names`.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from pathlib import Path

    from selfsight.data.written import note
    from selfsight.errors import MachineError, SelfsightError
    from selfsight.files import write_whole
    from selfsight.heads.classify_head import ClassifyHead
    from selfsight.heads.detect_head import DetectHead
    from selfsight.heads.head import head_folder, load_head
    from selfsight.heads.inspect_head import InspectHead
    from selfsight.heads.segment_head import SegmentHead
    from selfsight.report import detect_page, head_page, inspect_page, page, segment_page
    from selfsight.training.run import Run

    of_run = Run.open(run) if head_folder(run) is None else None
    path = Path(out) if out else Path(run).expanduser() / "report.html"
    if path.is_dir():
        raise SelfsightError(f"{path} is a folder. Give the file to write: -o {path / 'report.html'}")
    if not path.parent.is_dir():
        raise SelfsightError(f"The folder {path.parent} does not exist. Make it, or give another -o.")
    told = thumbnails and not private, names and not private
    if of_run is not None:
        html, verdict, items = page.build(of_run, *told)
        shown = [str(of_run.read_recipe()[2]["collection"])]
    else:
        head = load_head(run)
        if isinstance(head, DetectHead):
            (html, verdict, items), shown = detect_page.build(head, *told), detect_page.collections(head)
        elif isinstance(head, InspectHead):
            (html, verdict, items), shown = inspect_page.build(head, *told), inspect_page.collections(head)
        elif isinstance(head, SegmentHead):
            (html, verdict, items), shown = segment_page.build(head, *told), segment_page.collections(head)
        elif isinstance(head, ClassifyHead):
            (html, verdict, items), shown = head_page.build(head, *told), head_page.collections(head)
        else:
            raise SelfsightError(
                f"There is no page of heads of the task {head.about.task} yet. For its figures: selfsight evaluate "
                f"{run} --test LABELLED"
            )
    try:
        write_whole(path, html)
        for collection in shown if out else []:
            note("pictures", path, Path(collection))
    except OSError as error:
        raise MachineError(f"Cannot write {path}: {error.strerror}. Give another -o.") from None
    return Report(str(path), verdict, items)


def show(result: Report) -> None:
    """Print the verdict and where the page is."""
    from selfsight.console import results

    console = results(soft_wrap=True)
    console.print(result.verdict.sentence)
    console.print(f"The page, to open in any browser: {result.report}")
