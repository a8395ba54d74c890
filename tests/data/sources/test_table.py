"""Manifests: every row becomes the file that it means, or an entry with the reason."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfsight.data.sources.choose import make_source
from selfsight.data.sources.names import Names, Seen
from selfsight.data.sources.source import Entry, Options
from selfsight.errors import SelfsightError


def make(root: Path, *files: str) -> None:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def listed(location: str | Path, **options: object) -> tuple[list[Entry], Counter[str]]:
    source = make_source(str(location), Options(**options))  # type: ignore[arg-type]
    entries = list(source.entries())
    assert len({entry.uri for entry in entries}) == len(entries)
    assert list(source.entries()) == entries  # listed again, it is the same
    for entry in entries:
        if not entry.reason:
            with source.open(entry.uri) as file:
                assert len(file.read()) == entry.bytes == os.fstat(file.fileno()).st_size
    return entries, source.others


def outcome(entries: Iterable[Entry]) -> dict[str, str]:
    return {entry.uri: entry.reason for entry in entries}


def test_a_list_of_paths(tmp_path: Path):
    make(tmp_path, "a/1.png", "b c.png", "../outside/2.png")
    text = f"# comment\n\n  a/1.png \nb c.png\r\n{tmp_path / 'a' / '1.png'}\n../outside/2.png\na\ngone.png\n./b c.png"
    entries, others = listed(write(tmp_path / "list.txt", text))
    expected = {"a/1.png": "", "b c.png": "", "../outside/2.png": "", "a": "not a file", "gone.png": "no such file"}
    assert outcome(entries) == expected
    assert others == {"listed before": 2}
    stat = (tmp_path / "a" / "1.png").stat()
    assert (entries[0].bytes, entries[0].modified_ns) == (stat.st_size, stat.st_mtime_ns)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_table_fills_what_is_named_and_leaves_out_the_rest(tmp_path: Path, suffix: str):
    make(tmp_path, "1.png", "2.png")
    rows = {"File_Name": ["1.png", "2.png"], "label": ["cat", " "], "patient": ["Ann", "Bob"], "frame": ["7", "x"]}
    rows |= {"score": ["1.0", "2"], "secret": ["s", "s"]}
    if suffix == "parquet":
        pq.write_table(pa.table(rows | {"score": [1.0, 2.5], "frame": [7, None]}), tmp_path / "t.parquet")
    else:
        mark = {"csv": ";", "tsv": "\t"}[suffix]
        lines = [mark.join(rows), *(mark.join(row) for row in zip(*rows.values(), strict=True))]
        write(tmp_path / f"t.{suffix}", "\ufeff" + "\r\n".join(lines))
    columns = {"group": "patient", "score": "score", "stem": "{table}/{stem}"}
    entries, _ = listed(tmp_path / f"t.{suffix}", columns=columns)
    first = {"label": "cat", "frame": 7, "group": "Ann", "stem": "t/1", "score": "1.0"}
    second = {"label": None, "frame": None, "group": "Bob", "stem": "t/2", "score": "2"}
    if suffix == "parquet":  # numbers, not text
        first, second = first | {"score": "1"}, second | {"score": "2.5"}
    assert [entry.columns for entry in entries] == [first, second]


def test_ids_are_looked_up_by_path_name_stem_and_number(tmp_path: Path):
    make(tmp_path, "x/007.png", "x/12.jpg", "x/scan.1.tif", "y/1.2.840.113", "y/012.png", "images/5.png", "masks/5.png")
    ids = ["7", "x/12", "scan.1.tif", "scan.1.tif", "1.2.840.113", "0012", "5", "x\\007.png", "9" * 5000, "²"]
    entries, others = listed(write(tmp_path / "t.csv", "image\n" + "\n".join(ids)))
    found = {"x/007.png": "", "x/12.jpg": "", "x/scan.1.tif": "", "y/1.2.840.113": "", "images/5.png": ""}
    missing = {"²": "no such file", "row 10 of t.csv": "no such file"}
    assert outcome(entries) == found | missing | {"0012": "2 files could be meant: x/12.jpg, y/012.png"}
    assert others == {"listed before": 2}


def test_each_of_several_tables_means_the_files_beside_it(tmp_path: Path):
    make(tmp_path, "site1/images/001.png", "site1/images/002.png", "site2/images/001.png", "site2/images/003.png")
    make(tmp_path, "site1/masks/001.png")
    write(tmp_path / "site1" / "labels.csv", "image ID,class label\r\n1,a\r\n2,b\r\n3,c\r\n")
    write(tmp_path / "site2" / "labels.csv", "image ID,class\r\n1,d\r\nimages/003.png,e\r\n")
    columns = {"path": "image ID", "label": "class label|class", "site": "{0}", "mask": "{0}/masks/{name}"}
    source = make_source(str(tmp_path / "site*" / "labels.csv"), Options(columns=columns))
    assert source.name == tmp_path.name
    entries, _ = listed(tmp_path / "site*" / "labels.csv", columns=columns)
    rows = {e.uri: e.reason or (e.columns["label"], e.columns["site"], e.columns["mask"]) for e in entries}
    assert rows == {
        "site1/images/001.png": ("a", "site1", "site1/masks/001.png"),
        "site1/images/002.png": ("b", "site1", None),
        "site1/3": "no such file",  # not site2's
        "site2/images/001.png": ("d", "site2", None),
        "site2/images/003.png": ("e", "site2", None),
    }


def test_lists_elsewhere_with_a_root(tmp_path: Path):
    make(tmp_path, "JPEG/a.jpg", "JPEG/b.jpg", "JPEG/c.jpg")
    for name, ids in (("train", "a\nb\n"), ("val", "c\n"), ("trainval", "a\nb\nc\n")):
        write(tmp_path / "lists" / f"{name}.txt", ids)
    pattern = tmp_path / "lists" / "{train,val}.txt"
    columns = {"split": "{table}", "group": "PatientID"}
    entries, others = listed(pattern, root=str(tmp_path), columns=columns)
    splits = {entry.uri: entry.columns["split"] for entry in entries}
    assert splits == {"JPEG/a.jpg": "train", "JPEG/b.jpg": "train", "JPEG/c.jpg": "val"}
    assert not others
    source = make_source(str(pattern), Options(root=os.path.relpath(tmp_path), columns=columns))
    assert source.options.root == str(tmp_path)  # found again from another folder
    assert source.keywords == {"group": "PatientID"}  # a list has no columns of its own
    with pytest.raises(SelfsightError, match=r"test\.txt does not exist"):
        make_source(str(tmp_path / "lists" / "{train,test}.txt"), Options())
    with pytest.raises(SelfsightError, match="is not a folder"):
        make_source(str(pattern), Options(root=str(tmp_path / "nowhere")))


def test_unwanted_files_are_left_out(tmp_path: Path):
    make(tmp_path, "train/1.png", "test/2.png")
    path = write(tmp_path / "t.csv", "path\ntrain/1.png\ntest/2.png\n,\n")
    assert set(outcome(listed(path, include=("train/*",))[0])) == {"train/1.png", "row 4 of t.csv"}


def test_rows_that_are_no_rows_have_reasons(tmp_path: Path):
    make(tmp_path, "1.png", "2.png", "3.png", "a\nb.png", "ü.png")
    text = "path,label,site\r\n1.png\r\n2.png,b,c,,\r\n3.png,b,c,d\r\n\r\n,x,y\r\n" + "n" * 20_000 + ",b,c\r\n"
    text += f'1\0.png,b,c\r\n{"y" * 140_000},b,c\r\n"a\nb.png",new line,c\r\n'
    body = text.encode() + b"\xfc.png,b,c\r\n" + "ü.png,b,z".encode()
    (tmp_path / "t.csv").write_bytes(body)
    entries, _ = listed(tmp_path / "t.csv", columns={"site": "site"})
    assert outcome(entries) == {
        "1.png": "",
        "2.png": "",
        "row 4 of t.csv": "4 cells, where the first row has 3",
        "row 6 of t.csv": "no path",
        "row 7 of t.csv": "no such file",
        "row 8 of t.csv": "no such file",
        "row 9 of t.csv": "not a row of CSV: field larger than field limit (131072)",
        "a\nb.png": "",
        "\\xfc.png": "no such file (not UTF-8 in the manifest)",
        "ü.png": "",
    }
    rows = {entry.uri: entry.columns for entry in entries if not entry.reason}
    assert rows["1.png"] == {"label": None, "site": None}
    assert rows["ü.png"] == {"label": "b", "site": "z"}


def test_known_columns_are_found_in_any_case_and_their_own_spelling_first(tmp_path: Path):
    make(tmp_path, "1.png")
    (entry,), _ = listed(write(tmp_path / "t.csv", "Path,Label,LABEL,SITE,Score\n1.png,cat,dog,Bergen,3\n"))
    assert entry.columns == {"label": "cat", "site": "Bergen"}
    (entry,), _ = listed(write(tmp_path / "t.csv", "Path,Label,label\n1.png,cat,dog\n"))
    assert entry.columns == {"label": "dog"}
    (entry,), _ = listed(tmp_path / "t.csv", columns={"label": "Label"})
    assert entry.columns == {"label": "cat"}


def test_cells_that_say_that_nothing_is_known_are_empty_and_counted(tmp_path: Path):
    texts = ["NA", "n/a", "#N/A", "<NA>", "nan", "NULL", "none", "N A", "Nathan"]
    make(tmp_path, *(f"{i}.png" for i in range(len(texts))))
    rows = "".join(f"{i}.png,{text},{text},{text}\n" for i, text in enumerate(texts))
    entries, others = listed(
        write(tmp_path / "t.csv", "path,label,group,country\n" + rows), columns={"country": "country"}
    )
    assert [entry.columns["label"] for entry in entries] == [None] * 6 + ["none", "N A", "Nathan"]
    assert [entry.columns["group"] for entry in entries] == [None] * 6 + ["none", "N A", "Nathan"]
    assert [entry.columns["country"] for entry in entries] == texts  # Namibia
    assert others == {f"{name} {text}": 1 for text in texts[:6] for name in ("label", "group")}
    entries, others = listed(tmp_path / "t.csv", blanks=("none",))
    assert [entry.columns["label"] for entry in entries] == [*texts[:6], None, *texts[7:]] and others["label none"] == 1


def test_a_label_that_is_not_utf8_is_refused_by_its_row(tmp_path: Path):
    make(tmp_path, "1.png", "2.png")
    (tmp_path / "t.csv").write_bytes("path,label\n1.png,ok\n2.png,Öl\n".encode("cp1252"))
    with pytest.raises(
        SelfsightError, match=r"row 3 of t\.csv: label is '\\xd6l', which is not UTF-8.*iconv -f WINDOWS-1252"
    ):
        list(make_source(str(tmp_path / "t.csv"), Options()).entries())
    # The sign that other programs put in place of what they could not read is a sign like others.
    (tmp_path / "t.csv").write_bytes("path,label\n1.png,H\ufffda\n2.png,Öl\n".encode())
    assert [entry.columns["label"] for entry in listed(tmp_path / "t.csv")[0]] == ["H\ufffda", "Öl"]


def test_a_column_whose_name_is_not_utf8_is_written_out(tmp_path: Path):
    make(tmp_path, "1.png")
    (tmp_path / "t.csv").write_bytes("path,Größe\n1.png,3\n".encode("cp1252"))
    with pytest.raises(SelfsightError, match=r"no column for label=Größe.*Gr.*xf6.*xdfe'"):
        list(make_source(str(tmp_path / "t.csv"), Options(columns={"label": "Größe"})).entries())


def test_tables_of_excel_in_utf16(tmp_path: Path):
    make(tmp_path, "ü.png")
    (tmp_path / "t.csv").write_text("path\tlabel\nü.png\tGrün\n", encoding="utf-16")
    (entry,), _ = listed(tmp_path / "t.csv")
    assert (entry.uri, entry.columns) == ("ü.png", {"label": "Grün"})


@pytest.mark.parametrize(
    ("text", "columns", "sentence"),
    [
        ("path,Klasse\na,b\n", {"label": "klase"}, r"has no column for label=klase\..* Did you mean Klasse\?"),
        ("id,label\n1,a\n", {}, r"t\.csv has no column for path=.* 'id', 'label'.*--columns path=COLUMN"),
        ("path,label\n1,a\n", {"path": "name"}, r"no column for path=name"),
        ("path,label\n1,a\n", {"group": "patient|person"}, r"no column for group=patient\|person"),
        ("path,ward\na,b\n", {"ward": "group"}, r"for ward=group\. Your column comes last: --columns group=ward$"),
        ("file\na\n", {"file": "path"}, r"for file=path\. Your column comes last: --columns path=file$"),
        ("\n\n", {}, r"t\.csv is empty"),
    ],
)
def test_a_table_without_a_column_says_which_it_has(tmp_path: Path, text: str, columns: dict[str, str], sentence: str):
    source = make_source(write(tmp_path / "t.csv", text), Options(columns=columns))
    with pytest.raises(SelfsightError, match=sentence):
        list(source.entries())


def test_parquet_that_is_none_or_holds_no_paths_is_one_sentence(tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(SelfsightError, match=r"t\.parquet is not a Parquet file that can be read"):
        list(make_source(str(tmp_path / "t.parquet"), Options()).entries())
    pq.write_table(pa.table({"image": [{"data": "x", "path": "1.png"}]}), tmp_path / "t.parquet")
    with pytest.raises(SelfsightError, match=r"'image' of t\.parquet holds struct<"):
        list(make_source(str(tmp_path / "t.parquet"), Options()).entries())


def test_pipes_and_links_to_nothing_in_a_table(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("nowhere")
    entries, _ = listed(write(tmp_path / "t.csv", "path\npipe.png\nlink.png\n"))
    assert outcome(entries) == {"pipe.png": "not a file", "link.png": "no such file"}


def peak(work: Callable[[], object]) -> int:
    """The most bytes that `work` held at a time."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_rows_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("selfsight.data.sources.names._FRESH", 1000)

    def rows(count: int) -> int:
        lines = (f"gone/{i:07d}.png,{i % 10}\n" for i in range(count))
        source = make_source(write(tmp_path / "t.csv", "path,label\n" + "".join(lines)), Options())
        return peak(lambda: deque(source.entries(), maxlen=0))

    assert rows(6000) - rows(2000) < 100 * 4000  # the hash of the path; the entry itself has some 700


def test_a_name_seen_takes_eight_bytes_and_three_times_that_while_they_are_sorted():
    def seen(count: int) -> int:
        names = Seen()
        return peak(lambda: deque((names.add(f"{i:07d}") for i in range(count)), maxlen=0))

    assert seen(140_000) - seen(70_000) < 32 * 70_000


def test_names_seen_before_are_known_across_the_sorted_and_the_fresh():
    seen = Seen()
    names = [f"n{i}" for i in range(70_000)]
    assert all(seen.add(name) for name in names)
    assert not any(seen.add(name) for name in names)
    assert seen.add("other")


def test_names_are_found_by_any_key_even_if_hashes_collide():
    names = Names(lambda name: [name, name[0]])
    for name in ("b1", "a1", "é2", "b2"):
        names.add(name)
    names.sort()
    assert list(names) == ["b1", "a1", "é2", "b2"]
    assert [names.find(key) for key in ("b", "é2", "c")] == [[0, 3], [2], []]
    names._found[:] = hash("b")  # as if all shared a hash
    assert names.find("b") == [0, 3]


def test_a_path_with_two_labels_has_none_and_blank_rows_do_not_count(tmp_path: Path):
    make(tmp_path, "a/1.png", "2.png", "3.png", "4.png")
    rows = [
        "a/1.png,cat",
        "2.png,dog",
        "3.png,",
        "4.png,cat",
        "./a//1.png,dog",
        "2.png,dog",
        "3.png,dog",
        "a\\1.png,cat",
    ]
    path = write(tmp_path / "t.csv", "\n".join(["path,label", *rows, "4.png,NA", "gone.png,a", "gone.png,b"]))
    source = make_source(path, Options())
    for _ in range(2):
        labels = {entry.uri: entry.columns.get("label") for entry in source.entries()}
        assert labels == {"a/1.png": None, "2.png": "dog", "3.png": "dog", "4.png": "cat", "gone.png": None}
        assert source.contradicted == {"a/1.png": "'cat' in row 2 of t.csv, 'dog' in row 6 of t.csv"}
        assert source.others == {"listed before": 6, "label NA": 1}


def test_several_tables_may_differ(tmp_path: Path):
    make(tmp_path, "x.png", "y.png")
    for name, text in (("a.csv", "x.png,1\ny.png,1\n"), ("b.csv", "x.png,2\ny.png,1\n")):
        write(tmp_path / name, "path,grade\n" + text)
    source = make_source(str(tmp_path / "*.csv"), Options(columns={"label": "grade"}))
    assert {entry.uri: entry.columns["label"] for entry in source.entries()} == {"x.png": None, "y.png": "1"}
    assert source.contradicted["x.png"] == "'1' in row 2 of a.csv, '2' in row 2 of b.csv"


@pytest.mark.parametrize("lines", ["\n", "\r\n", "\r"])
def test_the_row_that_tells_excel_its_separator_is_no_header(tmp_path: Path, lines: str):
    make(tmp_path, "1.png", "2.png")
    for first, sign in (("sep=;", ";"), ('"sep=|"', "|"), ("SEP=,", ",")):
        text = lines.join(
            [first, sign.join(("path", "label")), sign.join(("1.png", "a;b" if sign == "," else "a,b")), ""]
        )
        (entry,) = make_source(write(tmp_path / "t.csv", text), Options()).entries()
        assert (entry.uri, entry.columns["label"]) == ("1.png", "a;b" if sign == "," else "a,b")


def test_a_column_named_twice_is_refused_where_it_counts(tmp_path: Path):
    make(tmp_path, "1.png")
    twice = make_source(write(tmp_path / "t.csv", "path,label,note,label\n1.png,a,x,b\n"), Options())
    with pytest.raises(SelfsightError, match=r"^t\.csv has 2 columns 'label'\. Rename all but one\.$"):
        list(twice.entries())
    unused = make_source(write(tmp_path / "u.csv", "path,label,note,note\n1.png,a,x,b\n"), Options())
    assert next(unused.entries()).columns["label"] == "a"


def test_a_table_without_a_header_says_so(tmp_path: Path):
    make(tmp_path, "1.png", "2.png")
    source = make_source(write(tmp_path / "t.csv", "1.png,cat\n2.png,dog\n"), Options())
    with pytest.raises(
        SelfsightError, match=r"The first row of t\.csv names an image, '1\.png', where the names of the"
    ):
        list(source.entries())


def test_names_of_other_systems_find_their_files(tmp_path: Path):
    nfd, nfc = "cafe\N{COMBINING ACUTE ACCENT}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    make(tmp_path, f"{nfd}/1.jpg", "Cat/IMG_2.JPG", "dog/img_2.jpg", "dog/3.jpg", "x/Same.png", "x/same.png")
    rows = [f"{nfc}/1.jpg", "cat\\img_2.jpg", "IMG_2.jpg", "DOG/3.JPG", "x/SAME.png", "https://example.org/4.jpg"]
    entries, _ = listed(write(tmp_path / "t.csv", "path\n" + "\n".join(rows)))
    assert outcome(entries) == {
        f"{nfd}/1.jpg": "",
        "Cat/IMG_2.JPG": "",
        "IMG_2.jpg": "2 files could be meant: Cat/IMG_2.JPG, dog/img_2.jpg",
        "dog/3.jpg": "",
        "x/SAME.png": "2 files could be meant: x/Same.png, x/same.png",
        "https://example.org/4.jpg": "an address, not a path: download it",
    }
