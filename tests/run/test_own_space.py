"""The contract of ``FILE.py:FUNCTION``: which arguments it gets, and what it is told if it errs."""

from pathlib import Path

import pytest
import torch

from dsonas.cost import Budget
from dsonas.run.network_files import RunError, Shape
from dsonas.run.user_models import OwnSpace
from dsonas.search import SearchConfig

SHAPE = Shape(image_size=8, input_channels=3, num_classes=5)
HEAD = "from torch import nn\nimport dsonas\n"
NET = """
def net(c, n):
    choice = dsonas.LayerChoice([nn.Conv2d(c, c, 3, padding=1), nn.Identity()], label="x")
    return nn.Sequential(choice, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, n))
"""


def space(folder: Path, text: str) -> OwnSpace:
    file = folder / "my.py"
    file.write_text(HEAD + NET + text)
    return OwnSpace.of(f"{file}:make")


@pytest.mark.parametrize(
    "signature",
    [
        "num_classes, in_channels, image_size",
        "num_classes, in_channels",
        "*, in_channels, num_classes, width=3",
        "**k",
        "image_size=1, **k",
        "num_classes, in_channels, *args",
    ],
)
def test_a_function_gets_what_it_takes(tmp_path: Path, signature: str):
    body = f"def make({signature}):\n    k = locals().get('k') or locals()\n"
    found = space(tmp_path, f"{body}    return net(k['in_channels'], k['num_classes'])\n")
    assert found.model(SHAPE)(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_a_function_without_arguments_and_a_class_will_do(tmp_path: Path):
    assert space(tmp_path, "def make():\n    return net(3, 5)\n").model(SHAPE).training
    text = """
class make(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = net(3, num_classes)
    def forward(self, x):
        return self.net(x)
"""
    assert type(space(tmp_path, text).model(SHAPE)).__name__ == "make"


ERRORS = {
    "no function": ("make2 = 1", "must name a function of that file, got 'make'"),
    "no function but a value": ("make = 1", "must name a function of that file"),
    "import": ("import no_such_module", "fails in line 7: ModuleNotFoundError"),
    "syntax": ("def make(:", "fails in line 7: SyntaxError"),
    "raises": ("def make():\n    return 1 / 0", "fails in line 8: ZeroDivisionError"),
    "argument": ("def make(num_classes, depth):\n    pass", "needs 'depth': give that a default"),
    "position": ("def make(num_classes, /):\n    pass", "needs 'num_classes'"),
    "no module": ("def make():\n    return 3", "must return a torch.nn.Module, got int"),
    "no choices": ("def make():\n    return nn.Flatten()", "there is nothing to choose in it"),
    "classes": ("def make():\n    return net(3, 4)", "must give logits (2, 5)", "got (2, 4)"),
    "channels": ("def make():\n    return net(1, 5)", "fails on images (2, 3, 8, 8): RuntimeError"),
    "map": ("def make():\n    return net(3, 5)[:1]", "must give logits (2, 5)", "(2, 3, 8, 8)"),
    "tuple": (
        "class make(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.net = net(3, 5)\n    def forward(self, x):\n"
        "        return (self.net(x), 0) if self.training else self.net(x)",
        "must give logits (2, 5)", "got tuple",
    ),
    "frozen": (
        "def make():\n    return net(3, 5).requires_grad_(False)",
        "must have parameters to train, but requires_grad is True for none of them",
    ),
    "labels": (
        "def make():\n    a = dsonas.LayerChoice([nn.Identity()], label='x')\n"
        "    return nn.Sequential(a, net(3, 5))",
        "have the label 'x', so their candidates must be the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes_are_one_line(tmp_path: Path, name: str):
    text, *fragments = ERRORS[name]
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        space(tmp_path, text).model(SHAPE)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_a_missing_file_and_a_place_without_function(tmp_path: Path):
    with pytest.raises(RunError, match=r"must name a Python file \(NAME.py\) that exists"):
        OwnSpace.of(f"{tmp_path}/none.py:make").model(SHAPE)
    for place in ("space.py", "space.py:", ":make", "space.py:a.b", "make"):
        with pytest.raises(RunError, match=r"must be FILE\.py:FUNCTION"):
            OwnSpace.of(place)


def test_an_unreachable_budget_is_told_the_smallest_cost(tmp_path: Path):
    found = space(tmp_path, "def make():\n    return net(3, 5)\n")
    with pytest.raises(ValueError, match=r"budget.macs must be at least 15, .* got 14"):
        found.supernet(SHAPE, Budget(macs=14), SearchConfig(), 0)
    assert found.supernet(SHAPE, Budget(macs=15), SearchConfig(), 0).cost({"x": ("1",)}) == 15


def test_the_final_network_takes_images_in_any_layout(tmp_path: Path):
    text = """
class make(nn.Module):
    def __init__(self):
        super().__init__()
        self.choice = dsonas.LayerChoice([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)])
        self.head = nn.Linear(4 * 64, 5)
    def forward(self, x):
        return self.head(self.choice(x).view(len(x), -1))
"""
    network = space(tmp_path, text).final(SHAPE, {"choice": ["0"]}).eval()
    images = torch.randn(2, 3, 8, 8)
    strided = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images), network(strided))
