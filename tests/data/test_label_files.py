"""Files of labels as people write them: marks, headers, encodings, paths."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from data.test_folder_options import load, names, picture, pictures
from dsonas.data import DataError


@pytest.mark.parametrize("mark", [",", "\t", ";"])
@pytest.mark.parametrize("header", ["path{}label\n", "filename{}class\n", ""])
def test_labels_come_from_a_file(tmp_path, caplog, mark, header):
    for number in range(20):
        picture(tmp_path / "all" / f"{number}.png")
    rows = [f"all/{n}.png{mark}{'cat' if n % 2 else 'dog'}\n" for n in range(18)]
    file = tmp_path / "labels.csv"
    file.write_text("\ufeff" + header.format(mark) + "".join(rows), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path, labels=str(file))
    assert data.class_names == ("cat", "dog")
    assert names(data.train) | names(data.test) == {f"all/{n}.png" for n in range(18)}
    assert not names(data.train) & names(data.test)
    for part in (data.train, data.test):
        for name, label in zip(part.names or (), part.labels.tolist(), strict=True):
            assert label == (0 if int(Path(name).stem) % 2 else 1)
    assert "2 images without a class in labels.csv left out: all/18.png, all/19.png" in caplog.text


def test_a_file_of_labels_may_name_the_parts(tmp_path):
    parts = ["train"] * 8 + ["Validation"] * 4 + ["testing"] * 4
    rows = [f"{picture(tmp_path / f'{n}.png').name},{'ab'[n % 2]},{p}" for n, p in enumerate(parts)]
    (tmp_path / "l.csv").write_text("\n".join(["image,category,split", *rows]))
    data = load(tmp_path, labels=str(tmp_path / "l.csv"))
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 4, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n0.png,a\n0.png,b\n", "0.png has two classes or parts"),
        ("path,label,part\n0.png,a,later\n", "part must be train, val or test, got 'later'"),
        ("0.png\n1.png\n", "lines of path and class"),
        ("path,label\n", "names no image"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_of_labels_is_refused(tmp_path, text, message):
    picture(tmp_path / "0.png")
    if text is not None:
        (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, labels=str(tmp_path / "l.csv"))
    assert "\n" not in str(caught.value)


def test_a_short_line_of_labels_is_left_out_and_said(tmp_path, caplog):
    pictures(tmp_path / "all", count=6)
    rows = [f"{n},all/{kind}/{n}.png,{kind}" for kind in ("cat", "dog") for n in range(6)]
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(["id,path,label", *rows[:-1], "5,all/dog/5.png", "6"]))
    data = load(tmp_path, labels=str(file))
    assert len(data.train) + len(data.test) == 11
    assert "2 lines without a path or class left out" in caplog.text


def test_files_that_labels_name_and_that_are_not_there_are_said(tmp_path, caplog):
    rows = [f"{picture(tmp_path / f'{n}.png').name},{'ab'[n % 2]}" for n in range(12)]
    (tmp_path / "l.csv").write_text("\n".join(["path,label", *rows, "gone.png,a"]))
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path, labels=str(tmp_path / "l.csv"))
    assert data.skipped == ("gone.png",)
    assert data.split is not None
    assert data.split.rows["gone.png"].part == "unreadable"
    assert "1 unreadable image files skipped: gone.png" in caplog.text


def labelled(root: Path, write: Callable[[list[str]], str], encoding: str = "utf-8", **options):
    """Load twelve pictures by a file of labels, of which a function makes the text."""
    files = [str(picture(root / "all" / f"{n}.png").relative_to(root)) for n in range(12)]
    (root / "labels.csv").write_bytes(write(files).encode(encoding))
    return load(root, labels=str(root / "labels.csv"), **options)


def lines(files: list[str], line: str = "{},{}\n") -> str:
    return "".join(line.format(file, "dog" if at % 2 else "cat") for at, file in enumerate(files))


WAYS = {
    "quotes": lambda files: '"path","label"\n' + lines(files, '"{}","{}"\n'),
    "Windows": lambda files: "path,label\r\n" + lines(files, ".\\{},{}\r\n").replace("/", "\\"),
    "spaces": lambda files: "path, label\n" + lines(files, '{}, "{}"\n'),
    "index": lambda files: ",path,label\n" + lines(files, "7,{},{}\n"),
    "label first": lambda files: "label,path\n" + lines(files, "{1},{0}\n"),
    "label first, no header": lambda files: lines(files, "{1},{0}\n"),
    "other columns": lambda files: "w,image,h,class\n" + lines(files, "3,{},4,{}\n"),
    "twice": lambda files: "path,label\n" + lines(files + files),
    "comment": lambda files: "# of mine\npath,label\n" + lines(files),
    "notes": lambda files: "path,label,notes\n" + lines(files, '{},{},"a\nb"\n'),
    "part": lambda files: "path,label,split\n" + lines(files, "{},{},\n"),
    "own words": lambda files: "photo,kind\n" + lines(files),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("way", WAYS)
def test_files_of_labels_are_read_however_they_are_written(tmp_path, way, encoding):
    data = labelled(tmp_path, WAYS[way], encoding)
    assert data.class_names == ("cat", "dog")
    found = {
        name: label for part in (data.train, data.test)
        for name, label in zip(part.names or (), part.labels.tolist(), strict=True)
    }  # fmt: skip
    assert found == {f"all/{n}.png": n % 2 for n in range(12)}


def test_a_first_line_without_a_class_is_left_out_and_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = labelled(tmp_path, lambda files: "all/0.png\n" + lines(files[1:]))
    assert len(data.train) + len(data.test) == 11
    assert "1 lines without a path or class left out" in caplog.text
    assert "1 images without a class in labels.csv left out: all/0.png" in caplog.text


def test_a_first_line_of_a_file_that_is_gone_is_no_header(tmp_path):
    data = labelled(tmp_path, lambda files: "gone.png,cat\n" + lines(files))
    assert data.skipped == ("gone.png",)
    assert len(data.train) + len(data.test) == 12


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda files: "image,cat,dog\n" + lines(files, "{},1,0\n"), "name the columns path and"),
        (lambda files: "path,label\n" + lines(files).replace(".png", ""), "none of the 12 files"),
        (lambda files: "path,label\n" + lines(files).replace("all/", ""), "none of the 12 files"),
        (lambda files: "path,label\nx\0y,cat\n" + lines(files), "zero bytes"),
        (lambda files: lines(files, "{} {}\n"), "with a comma"),
    ],
)
def test_a_file_of_labels_that_cannot_be_meant_is_refused(tmp_path, write, message):
    with pytest.raises(DataError, match=message) as caught:
        labelled(tmp_path, write)
    assert str(caught.value).isprintable()


def test_another_encoding_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match="give a CSV file in UTF-8"):
        labelled(tmp_path, lambda files: lines(files).replace("cat", "h\xe9ron"), "latin-1")


def test_names_of_columns_that_are_guessed_and_classes_that_look_alike_are_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        labelled(
            tmp_path,
            lambda files: "photo,kind\n" + lines(files).replace("10.png,cat", "10.png,Cat"),
        )
    assert "first line is taken for the columns' names: photo, kind" in caplog.text
    assert "classes 'Cat', 'cat' differ in case, spaces or dashes alone" in caplog.text


def test_images_of_other_parts_are_no_images_without_a_class(tmp_path, caplog):
    pictures(tmp_path / "held", "cat dog", count=3)
    with caplog.at_level(logging.WARNING):
        data = labelled(tmp_path, lines, test=str(tmp_path / "held"))
    assert (len(data.train), len(data.test)) == (12, 6)
    assert "without a class" not in caplog.text


def test_lines_may_end_as_on_old_macs(tmp_path):
    pictures(tmp_path, "a b")
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in sorted(tmp_path.rglob("*.png"))]
    (tmp_path / "l.csv").write_bytes("\r".join(["path,label", *rows]).encode())
    assert load(tmp_path, labels=str(tmp_path / "l.csv")).class_names == ("a", "b")


def test_a_quotation_mark_that_is_not_closed_swallows_no_lines(tmp_path):
    pictures(tmp_path, "a b")
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in sorted(tmp_path.rglob("*.png"))]
    rows[3] = rows[3].replace(",", ',"')
    (tmp_path / "l.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(DataError, match=f"a quotation mark is not closed before {rows[3][:3]}"):
        load(tmp_path, labels=str(tmp_path / "l.csv"))
