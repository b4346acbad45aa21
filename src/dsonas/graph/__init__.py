"""An architecture as data: block graphs, skeletons, search spaces; standard library only."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
