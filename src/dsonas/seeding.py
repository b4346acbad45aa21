"""Seeds derived from one seed: the same on every machine, in every process and in every run."""

from __future__ import annotations

import hashlib
import json
from operator import index


def derive_seed(seed: int, *parts: int | str) -> int:
    """Derive the seed of one random decision from the run's seed and the name of the decision.

    A pure function: it keeps no state, so that a resumed run draws what the uninterrupted run
    would have drawn. Different ``parts`` give independent seeds; ``1`` and ``"1"`` differ.

    Args:
        seed: the seed of the run, any integer.
        *parts: what the seed is for, such as ``"order", epoch``.

    Returns:
        An integer in ``[0, 2**63)``, for ``torch.Generator.manual_seed`` or
        ``numpy.random.default_rng``.

    Raises:
        TypeError: if ``seed`` or a part is neither an integer nor a string.

    Example:
        >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3)
        True
        >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 4)
        False
    """
    words = [index(seed), *(part if isinstance(part, str) else index(part) for part in parts)]
    digest = hashlib.blake2b(json.dumps(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
