"""Our docstrings say ``Example:``, as one there is; what renders them knows only ``Examples:``."""

from __future__ import annotations

import re
from typing import Any

import griffe

HEADING = re.compile(r"^Example:$", re.MULTILINE)


class ExampleSections(griffe.Extension):
    """Make every ``Example:`` a section of code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class and function that was read."""
        if obj.docstring:
            obj.docstring.value = HEADING.sub("Examples:", obj.docstring.value)
