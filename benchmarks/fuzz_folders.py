"""Random image folders for ``fuzz.py``: splits, links, names and formats, and what must hold."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from dsonas.data import DataConfig, DataError, load_data

ROOT = Path("tree")
TOPS = (
    "train", "Train", "test", "testing", "val", "validation", "seg_train", "seg_test", "cat",
    "dog", "_owl", "train_station", "images", "data", ".hidden", "@eaDir", "t\tab", "\udcff",
    "caf\u00e9", "cafe\u0301",
)  # fmt: skip
CLASSES = ("cat", "dog", "owl", "test", "train", "__MACOSX", ".git", "n\nl")
ENDINGS = (".png", ".jpg", ".PNG", ".bmp", ".tga", ".webp", ".gif", "", ".txt", ".heic", ".mp4")
KINDS = ("image", "image", "image", "grey", "broken", "empty", "copy", "link", "loop", "dangling")
IMAGES = (".png", ".jpg", ".bmp", ".webp", ".gif")  # read whatever their case

file_of_a_tree = st.tuples(
    st.sampled_from(TOPS), st.sampled_from(("", *CLASSES)), st.integers(0, 40),
    st.sampled_from(ENDINGS), st.sampled_from(KINDS), st.integers(0, 60),
)  # fmt: skip
settings = st.fixed_dictionaries(
    {
        "test": st.sampled_from((0.2, 0.5, 0.01)),
        "val": st.sampled_from((None, 0, 0.2)),
        "fit": st.sampled_from(("crop", "pad", "stretch", "crop:0.5")),
    }
)
trees = st.tuples(st.lists(file_of_a_tree, min_size=5, max_size=60), settings)


def grow(files: list[tuple[Any, ...]]) -> None:
    """Make the tree."""
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    made: list[Path] = []
    for top, inner, number, ending, kind, seed in files:
        path = ROOT / top / inner / f"{number}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            continue
        other = made[seed % len(made)] if made else None
        if kind == "copy" and other and other.is_file():
            shutil.copy(other, path)
        elif kind == "link" and other:
            path.symlink_to(other.resolve())
        elif kind == "loop":
            path.symlink_to((ROOT / top).resolve(), target_is_directory=True)
        elif kind == "dangling":
            path.symlink_to("nowhere")
        elif kind in ("broken", "empty"):
            path.write_bytes(b"nonsense" if kind == "broken" else b"")
        else:
            form = {".jpg": "JPEG", ".bmp": "BMP", ".webp": "WEBP", ".gif": "GIF"}
            mode = "L" if kind == "grey" else "RGB"
            image = Image.new(mode, (9 + seed % 7, 8), 3 * seed if mode == "L" else (seed, 9, 200))
            image.save(path, form.get(ending, "PNG"))
        made.append(path)


def check_tree(case: tuple[list[tuple[Any, ...]], dict[str, Any]]) -> None:
    """Load a random tree; see ``check_parts``. A refusal is one line."""
    files, options = case
    grow(files)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("dsonas.data")
    logger.addHandler(handler)
    try:
        data = load_data(DataConfig(name=f"folder:{ROOT}", image_size=8, **options))
    except DataError as error:
        refused = str(error)
    else:
        refused = ""
    finally:
        logger.removeHandler(handler)
    assert all("\n" not in text for text in [*said, refused]), (said, refused)
    if refused:
        return
    check_parts(data)
    again = load_data(DataConfig(name=f"folder:{ROOT}", image_size=8, **options))
    assert again.identity == data.identity


def check_parts(data: Any) -> None:
    """No test image in training, none taken twice, and none left out without a word."""
    assert data.split is not None
    rows = data.split.rows
    assert type(data.split).from_csv(data.split.to_csv()).rows == rows
    json.dumps(data.class_names).encode()
    parts = {"train": data.train, "test": data.test, "val": data.val}
    names = {part: list(images.names or ()) for part, images in parts.items() if images}
    paths = {name.encode("unicode_escape"): path for path in _files() for name in [_name(path)]}
    seen: dict[str, str] = {}
    real: set[str] = set()
    for part, own in names.items():
        assert len(set(own)) == len(own)
        for name in own:
            assert rows[name].part == part, (name, part, rows[name])
            path = paths[name.encode("unicode_escape")]
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            assert seen.setdefault(digest, part) == part, f"{name} is in {part} and {seen[digest]}"
            place = os.path.realpath(path)
            assert place not in real, f"{name} is taken twice"
            real.add(place)
    listed = rows.keys() | data.split.ignored.keys()
    aside = [word.rpartition("/")[0] for word in data.layout.split(", ")[1:]
             if " unused" in word or word.endswith(" ignored")]  # fmt: skip
    for path in _files():
        name = _name(path)
        if path.suffix.lower() in IMAGES and name not in listed:
            assert any(f"/{folder}/" in f"/{name}" for folder in aside), f"{name} is lost unsaid"


def _files() -> list[Path]:
    from dsonas.data.folder_layout import walk_files

    return [Path(path) for path, _ in walk_files(ROOT)]


def _name(path: Path) -> str:
    from dsonas.data import plain_name

    return plain_name(os.path.relpath(path, ROOT).replace(os.sep, "/"))
