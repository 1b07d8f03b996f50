"""The interval of a share that was counted."""

import numpy as np

# Of the normal distribution: 95% lie within so many standard deviations.
Z_95 = 1.959963984540054


def wilson_interval(num_found: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of Wilson's 95% interval of num_found / counts, [...] each, of counts >= 1 independent trials.

    >>> low, high = wilson_interval(np.array([0]), np.array([10]))
    >>> low.round(4), high.round(4)
    (array([0.]), array([0.2775]))
    """
    share, z2 = num_found / counts, Z_95**2
    center = (share + z2 / (2 * counts)) / (1 + z2 / counts)
    width = Z_95 * np.sqrt(share * (1 - share) / counts + z2 / (4 * counts**2)) / (1 + z2 / counts)
    return np.maximum(center - width, 0), np.minimum(center + width, 1)
