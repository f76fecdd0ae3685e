"""Which slides, in which order: a pure function of (seed, epoch), so that resuming needs only a position."""

import numpy as np
from numpy.typing import NDArray

from ingest.errors import ConfigError


def epoch_order(weights: NDArray[np.float64], fraction: float, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Indices of the slides of one epoch, drawn without replacement with chances in proportion to their weight.

    Args:
        weights: [S] one per training slide, >= 0; a slide of weight 0 is never drawn.
        fraction: share of the drawable slides in an epoch, in (0, 1]; 0.5 in Campanella et al. 2024.
    Raises:
        ConfigError: no slide can be drawn.
    Source:
        Efraimidis and Spirakis 2006: the largest log(u) / w are a weighted sample without replacement.
    """
    drawable = np.flatnonzero(weights > 0)
    if drawable.size == 0:
        raise ConfigError("no training slide has a weight above 0; look at the split with `python -m ingest show`")
    num_drawn = max(1, round(fraction * drawable.size))
    generator = np.random.default_rng([seed, epoch])
    keys = np.log(generator.random(drawable.size)) / weights[drawable]
    drawn = drawable[np.argsort(-keys, kind="stable")[:num_drawn]]
    order: NDArray[np.int64] = generator.permutation(drawn).astype(np.int64)
    return order
