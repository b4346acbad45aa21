"""dsonas: neural architecture search by direct sparse optimisation (arXiv 1811.01567)."""

import lazy_loader

import dsonas.search as _search_room  # loads nothing of it

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
del _search_room, globals()["search"]  # so that `dsonas.search` is the function, found on first use
