"""Expressions of Python source, laid out as ``ruff format`` does by default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LINE_LENGTH = 88
INDENT = 4


class Symbol(str):
    """Source text that stands for itself, such as a variable."""


@dataclass(frozen=True)
class Keyword:
    """An argument passed by name."""

    name: str
    value: Expression


@dataclass(frozen=True)
class Group:
    """A call, or a tuple where the head is empty."""

    head: str
    items: tuple[Expression, ...]


Expression = Symbol | Keyword | Group


def literal(value: Any) -> Expression:
    """A value of the standard types as an expression.

    Raises:
        TypeError: if the value has no literal.

    Example:
        >>> print(render(literal((1, "it's", None))))
        (1, "it's", None)
    """
    if isinstance(value, Symbol):
        return value
    if isinstance(value, str):
        return Symbol(_quoted(value))
    if isinstance(value, float) and not math.isfinite(value):
        return Symbol(f'float("{value}")')
    if value is None or isinstance(value, bool | int | float):
        return Symbol(repr(value))
    if isinstance(value, tuple | list):
        return Group("", tuple(map(literal, value)))
    raise TypeError(f"{type(value).__name__} has no literal")


def _quoted(text: str) -> str:
    """A string literal in double quotes, unless single ones need fewer escapes."""
    found = repr(text)
    if found[0] == '"' or text.count('"') > text.count("'"):
        return found
    body = found[1:-1].replace("\\'", "'").replace('"', '\\"')
    return f'"{body}"'


def render(expression: Expression, indent: int = 0, column: int = 0, after: int = 0) -> str:
    """Source of an expression: on one line if it fits, otherwise an item on each line.

    Args:
        expression: what to write.
        indent: columns by which the line is indented.
        column: column at which the expression begins.
        after: characters that follow it on its line.

    Example:
        >>> render(Group("nn.Conv2d", (literal(3), Keyword("bias", literal(False)))))
        'nn.Conv2d(3, bias=False)'
    """
    flat = _flat(expression)
    if column + len(flat) + after <= LINE_LENGTH or isinstance(expression, Symbol):
        return flat
    if isinstance(expression, Keyword):
        head = f"{expression.name}="
        return head + render(expression.value, indent, column + len(head), after)
    return exploded(expression, indent)


def exploded(group: Group, indent: int = 0) -> str:
    """Source of a call or tuple with an item on each line."""
    inner = indent + INDENT
    lines = [" " * inner + render(item, inner, inner, 1) + ",\n" for item in group.items]
    return f"{group.head}(\n{''.join(lines)}{' ' * indent})"


def _flat(expression: Expression) -> str:
    if isinstance(expression, Symbol):
        return str(expression)
    if isinstance(expression, Keyword):
        return f"{expression.name}={_flat(expression.value)}"
    comma = "," if len(expression.items) == 1 and not expression.head else ""
    return f"{expression.head}({', '.join(map(_flat, expression.items))}{comma})"


def statement(start: str, expression: Expression, indent: int = 0) -> str:
    """A line, or several, such as ``start`` = ``x =``.

    Example:
        >>> statement("MEAN =", literal((0.5,)))
        'MEAN = (0.5,)'
    """
    column = indent + len(start) + 1
    return f"{' ' * indent}{start} {render(expression, indent, column)}"


def sum_statement(start: str, terms: Sequence[str], indent: int = 0) -> str:
    """A statement whose right side is a sum of names.

    Example:
        >>> sum_statement("y =", ["a", "b"])
        'y = a + b'
    """
    flat = " + ".join(terms)
    if indent + INDENT + len(flat) > LINE_LENGTH:
        flat = f"\n{' ' * (indent + INDENT)}+ ".join(terms)
    return operator_statement(start, flat, indent)


def operator_statement(start: str, expression: str, indent: int = 0) -> str:
    """A statement whose right side is an expression with operators; in parentheses if too long.

    Example:
        >>> operator_statement("y =", "a if b else c")
        'y = a if b else c'
    """
    space = " " * indent
    if "\n" not in expression and indent + len(start) + 1 + len(expression) <= LINE_LENGTH:
        return f"{space}{start} {expression}"
    return f"{space}{start} (\n{space}{' ' * INDENT}{expression}\n{space})"
