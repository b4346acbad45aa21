"""Small pieces of SVG, built as elements so that every picture is well-formed and escaped."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement, tostring

# what XML 1.0 does not allow in a document, escaped or not
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean_text(text: object) -> str:
    r"""A text without the characters that no XML document may hold.

    Example:
        >>> clean_text("a\x00b")
        'a�b'
    """
    return _FORBIDDEN.sub("\ufffd", str(text))


def number(value: float) -> str:
    """A coordinate with at most two decimals.

    Example:
        >>> number(3.0), number(1 / 3)
        ('3', '0.33')
    """
    return f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "0", value == 0)


def _attributes(values: dict[str, object]) -> dict[str, str]:
    """Python keywords to attribute names: ``class_`` is class, ``data_tip`` is data-tip."""
    return {
        name.rstrip("_").replace("_", "-"): number(value)
        if isinstance(value, float)
        else clean_text(value)
        for name, value in values.items()
        if value is not None
    }


def picture(width: float, height: float, label: str, **attributes: object) -> Element:
    """An svg element that scales to the width it is given.

    Args:
        width: of its coordinates, > 0.
        height: of its coordinates, > 0.
        label: what it shows, for those who cannot see it.
        attributes: more of them, such as ``class_``.
    """
    box = f"0 0 {number(width)} {number(height)}"
    return Element("svg", _attributes({**attributes, "viewBox": box, "role": "img"}) | {
        "aria-label": clean_text(label)
    })  # fmt: skip


def add(parent: Element, tag: str, text: object = None, **attributes: object) -> Element:
    """Append an element.

    Args:
        parent: what it becomes part of.
        tag: its name.
        text: what stands in it.
        attributes: ``class_`` is written class, ``data_tip`` data-tip; None leaves one out.

    Example:
        >>> markup(add(picture(2, 1, "dot"), "text", "<b>", x=0.5, class_="note"))
        '<text x="0.5" class="note">&lt;b&gt;</text>'
    """
    child = SubElement(parent, tag, _attributes(attributes))
    if text is not None:
        child.text = clean_text(text)
    return child


def shorten(text: str, longest: int) -> str:
    """A text cut to a number of characters.

    Example:
        >>> shorten("separable", 5)
        'sepa…'
    """
    return text if len(text) <= longest else text[: longest - 1] + "…"


def markup(element: Element) -> str:
    """The element as text that can stand in an HTML page."""
    return tostring(element, encoding="unicode", short_empty_elements=True)
