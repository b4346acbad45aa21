"""What can go wrong in an export."""

from __future__ import annotations


class ExportError(ValueError):
    """A network that cannot be exported as asked; the message says why and what to do."""
