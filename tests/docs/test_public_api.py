"""What ``import dsonas`` offers: few names, each explained with an example, all on the API page."""

import inspect
import re

import pytest

import dsonas
from helpers.pages import ROOT

# the examples themselves are doctests of the modules, run with the other tests


def test_there_are_few_names():
    assert len(dsonas.__all__) == len(set(dsonas.__all__)) <= 33


@pytest.mark.parametrize("name", dsonas.__all__)
def test_every_name_has_a_summary_and_an_example(name: str):
    documented = getattr(dsonas, name)
    text = inspect.getdoc(documented) or ""
    assert re.match(r"\S.*[.:]$", text.partition("\n\n")[0], re.DOTALL)
    assert re.search(r"^Example:\n    >>> ", text, re.MULTILINE)
    assert documented.__module__.startswith("dsonas.")


@pytest.mark.parametrize("name", dsonas.__all__)
def test_every_argument_is_explained(name: str):
    documented = getattr(dsonas, name)
    text = inspect.getdoc(documented) or ""
    parameters = inspect.signature(documented).parameters
    explained = set(re.findall(r"^    (\w+): ", text, re.MULTILINE))
    assert set(parameters) - explained - {"args", "kwargs"} == set()


def test_the_api_page_shows_exactly_these():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: dsonas\.(?:\w+\.)*(\w+)$", page, re.MULTILINE)
    assert sorted(shown) == sorted(dsonas.__all__)
