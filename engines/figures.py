"""How sure is a share that was counted?"""

from __future__ import annotations

import math


def interval(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), 0..1; z is 1.96 for 95 %."""
    if not of:
        return 0.0, 1.0
    p, n = hits / of, float(of)
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 / (1 + z * z / n)
    return max(0.0, scale * (middle - spread)), min(1.0, scale * (middle + spread))
