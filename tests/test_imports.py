"""Importing the library changes nothing in torch, and starts nothing."""

import subprocess
import sys
from pathlib import Path

import dsonas

SCRIPT = """
import threading
import numpy, torch
torch.set_num_threads(1)

def state():
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": numpy.random.get_state()[1].tolist(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "precision": torch.get_float32_matmul_precision(),
        "handlers": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "python threads": threading.active_count(),
    }

import importlib, logging, pkgutil, signal
before = state()
import dsonas
names = [m.name for m in pkgutil.walk_packages(dsonas.__path__, "dsonas.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
after = state()
assert len(names) > 20
assert before == after, [k for k in before if before[k] != after[k]]
"""


def test_importing_every_module_has_no_side_effects(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:dsonas", "-c", SCRIPT],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_help_needs_neither_torch_nor_a_parser_of_options():
    code = "import sys, dsonas.commands.cli as c; c.main(['--help']); "
    code += "sys.exit(bool({'torch', 'jsonargparse'} & {*sys.modules}))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
        == 0
    )


def test_the_public_names_are_there():
    assert dsonas.__all__
    assert all(getattr(dsonas, name) is not None for name in dsonas.__all__)
