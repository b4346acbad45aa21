"""What ``fuzz.py`` gives random inputs to, and what it takes for misbehaviour."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from PIL import Image

import fuzz_cases as cases
import fuzz_folders
from dsonas.commands.cli import main as dsonas
from dsonas.commands.configuring import config_parser
from dsonas.data.decoding import UnreadableImageError, decode, read_header
from dsonas.graph.jsonvalues import ArchitectureError
from dsonas.run.interrupts import StopSignal
from dsonas.run.recipes import recipe_names, recipe_path
from dsonas.run.runs import RunError, load_chain
from dsonas.train import STAGES
from dsonas.train.checkpoints import MAGIC, CheckpointError, read_checkpoint

TINY = shlex.split(
    "--data.max_train_images 60 --data.max_test_images 30 --network.levels 2 --network.channels 4 "
    "--network.blocks [1,1] --pretrain.epochs 1 --search.epochs 1 --train.epochs 2 "
    "--pretrain.batch_size 8 --search.batch_size 8 --train.batch_size 8 --engine.threads 1"
)
ENDED: Counter[int] = Counter()  # commands by exit code
LEFT_OUT = ("config", "out", "resume")


@dataclass
class Target:
    """What is fuzzed.

    Args:
        inputs: makes random cases.
        check: gives one to the program; raises if it misbehaves.
    """

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]


def command(*arguments: str, codes: tuple[int, ...] = (0, 2)) -> int:
    """Run a command; check its exit code and what it prints on stderr."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = dsonas(arguments)
    ENDED[code] += 1
    lines = err.getvalue().splitlines()
    assert code in codes, (code, lines)
    expected = 1 if code == 2 else 0
    assert len(lines) == expected, lines
    assert all(line.startswith("dsonas: error: ") for line in lines), lines
    assert all(len(line) < 2000 for line in lines), lines
    return code


def work(name: str, *arguments: str, codes: tuple[int, ...] = (0, 2)) -> int:
    """A command that works in the folder ``out``, up to its first step."""
    shutil.rmtree("out", ignore_errors=True)
    with mock.patch("dsonas.commands.working._do_steps", _instead):
        return command(name, *arguments, "--out", "out", codes=codes)


def _instead(name: str, job: Any, architecture: Any) -> None:
    """In place of the steps: what they would only find out after hours."""
    schedule = job.config.train.learning_rate(7)
    assert schedule(0) >= 0
    assert schedule(7 * job.config.train.epochs - 1) >= 0


def check_config(text: str) -> None:
    Path("mine.yaml").write_text(text, encoding="utf-8")
    work("run", "--config", "mine.yaml")


def check_options(arguments: list[str]) -> None:
    work("run", *arguments)
    work("evaluate", "--run", "finished", *arguments)


def check_architecture(text: str) -> None:
    Path("net.json").write_text(text, encoding="utf-8")
    with contextlib.suppress(ArchitectureError, RunError):
        for member in load_chain("net.json"):
            assert type(member).from_json(member.to_json()) == member.clean()
    work("train", *TINY, "--architecture", "net.json")


def check_image(case: tuple[str, bytes]) -> None:
    suffix, content = case
    path = f"image{suffix}"
    Path(path).write_bytes(content)
    for channels in (1, 3):
        with contextlib.suppress(UnreadableImageError):
            read_header(path)
            pixels = decode(path, 12, channels)
            assert (pixels.shape, str(pixels.dtype)) == ((channels, 12, 12), "uint8")
    command("predict", "--run", "finished", path)


def seal(body: bytes) -> bytes:
    return MAGIC + hashlib.sha256(body).digest() + body


def check_checkpoint(case: tuple[str, Any]) -> None:
    """Damaged bytes, with and without a right checksum; changed states, resumed for a step."""
    kind, value = case
    if kind == "state":
        buffer = io.BytesIO()
        torch.save({"version": 1, "state": value[1]}, buffer)
        _resume(value[0], seal(buffer.getvalue()))
        return
    path = Path("checkpoint-00000001.pt")
    path.write_bytes(seal(value) if kind == "sealed" else value)
    with contextlib.suppress(CheckpointError):
        read_checkpoint(path)


def _resume(stage: str, content: bytes) -> None:
    shutil.rmtree("out", ignore_errors=True)
    shutil.copytree("halted", "out")
    for later in STAGES[STAGES.index(stage) + 1 :]:
        shutil.rmtree(f"out/checkpoints/{later}", ignore_errors=True)
    max(Path("out/checkpoints", stage).iterdir()).write_bytes(content)
    with mock.patch.object(StopSignal, "__call__", return_value=True):
        command("run", *TINY, "--out", "out", codes=(0, 2, 130))


def check_folder(case: tuple[str, bytes]) -> None:
    """A finished run of which one file is damaged."""
    name, content = case
    shutil.rmtree("out", ignore_errors=True)
    shutil.copytree("finished", "out", ignore=shutil.ignore_patterns("checkpoints"))
    Path("out", name).write_bytes(content)
    command("evaluate", "--run", "out")
    command("predict", "--run", "out", "images/a/0.png")
    command("report", "out", "--no_images")
    with mock.patch("dsonas.commands.working._do_steps", _instead):
        command("run", *TINY, "--out", "out")


def check_tree(case: Any) -> None:
    """A random image folder: what is loaded from it, and now and then the commands themselves."""
    fuzz_folders.check_tree(case)
    if len(case[0]) % 10 == 0:
        command("predict", "--run", "finished", str(fuzz_folders.ROOT))
        command("check", str(fuzz_folders.ROOT))
        work("run", *TINY, "--data.name", f"folder:{fuzz_folders.ROOT}")


def prepare() -> None:
    """A finished run, one stopped in its last step, and a few images, in the present folder."""
    command("run", *TINY, "--out", "finished", codes=(0,))
    every_step = ("--engine.checkpoint_seconds", "0")
    with mock.patch.object(StopSignal, "__call__", _is_training):
        command("run", *TINY, *every_step, "--out", "halted", codes=(130,))
    for name in "ab":
        Path("images", name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (9, 9), 20 * i).save(f"images/{name}/{i}.png")


def _is_training(self: StopSignal) -> bool:
    return Path("halted/checkpoints/train").exists()


def targets() -> dict[str, Target]:
    """All of them, for the files of ``prepare``."""
    keys = [key for key in config_parser("run", "", ()).keys if key not in LEFT_OUT]
    recipes = [recipe_path(name).read_text() for name in recipe_names()]
    recipes.append(Path("finished/config.yaml").read_text())
    nets = [Path("finished", name).read_text() for name in ("architecture.json", "chain.json")]
    trees = [json.loads(text) for text in nets]
    images = cases.image_files()
    last = {stage: max(Path("halted/checkpoints", stage).iterdir()) for stage in STAGES}
    raw = [path.read_bytes() for path in last.values()]
    bodies = [content[len(MAGIC) + hashlib.sha256().digest_size :] for content in raw]
    states = [st.tuples(st.just(stage), cases.changed_value([read_checkpoint(path)], cases.tensors))
              for stage, path in last.items()]  # fmt: skip
    files = [path.name for path in Path("finished").iterdir() if path.is_file()]
    return {
        "folders": Target(fuzz_folders.trees, check_tree),
        "config": Target(cases.settings_text(keys, recipes), check_config),
        "options": Target(cases.options(keys), check_options),
        "architecture": Target(
            st.one_of(cases.damaged_text(nets), cases.changed_value(trees).map(json.dumps)),
            check_architecture,
        ),
        "images": Target(
            st.one_of(
                *(st.tuples(st.just(s), cases.damaged_bytes([content])) for s, content in images)
            ),
            check_image,
        ),
        "checkpoints": Target(
            st.one_of(
                st.tuples(st.just("raw"), cases.damaged_bytes(raw)),
                st.tuples(st.just("sealed"), cases.damaged_bytes(bodies)),
                st.tuples(st.just("state"), st.one_of(*states)),
            ),
            check_checkpoint,
        ),
        "folder": Target(
            st.one_of(
                *(
                    st.tuples(st.just(f), cases.damaged_bytes([Path("finished", f).read_bytes()]))
                    for f in files
                )
            ),
            check_folder,
        ),
    }
