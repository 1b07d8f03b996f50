"""What a comparison of few pairs can find: the paired t-test's power, and the difference that it would find mostly."""

import functools
import math
from collections.abc import Callable

import numpy as np

LEVEL = 0.05
POWER = 0.8
# Points of the integral over the pairs' own standard deviation: errors are below 1e-5.
_NUM_POINTS = 20_001


def rejection_rate(effect: float, critical: float, num_pairs: int) -> float:
    """How often a two-sided paired t-test rejects "no difference", of normal differences.

    Args:
        effect: their true mean, in standard deviations of a difference.
        critical: the |t| above which it rejects.
        num_pairs: n >= 2.
    """
    degrees = num_pairs - 1
    # Over the ratio of the sample's standard deviation to the true one: chi with n - 1 degrees of freedom, scaled.
    ratio = np.linspace(1e-9, 1 + 12 / math.sqrt(degrees), _NUM_POINTS)
    chi = ratio * math.sqrt(degrees)
    log_density = (degrees - 1) * np.log(chi) - chi**2 / 2 - (degrees / 2 - 1) * math.log(2) - math.lgamma(degrees / 2)
    density = np.exp(log_density) * math.sqrt(degrees)
    shift = effect * math.sqrt(num_pairs)
    beyond = sum(_normal(sign * shift - critical * ratio) for sign in (1, -1))
    return float(np.trapezoid(density * beyond, ratio))


def _normal(values: np.ndarray) -> np.ndarray:
    """The distribution function of a normal variable."""
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in values.tolist()])


def critical_value(num_pairs: int, level: float = LEVEL) -> float:
    """The |t| that a paired t-test of n pairs rejects above.

    >>> round(critical_value(4), 3), round(critical_value(3), 3)
    (3.182, 4.303)
    """
    return student_quantile(num_pairs - 1, level)


@functools.cache
def student_quantile(degrees: float, level: float = LEVEL) -> float:
    """The |t| that `level` lies beyond, of degrees of freedom > 0 that need not be whole.

    >>> round(student_quantile(3), 3), round(student_quantile(1.5), 3)
    (3.182, 6.017)
    """
    # Here and not above: the import takes a second. Its noncentral t, which a power would be, is NaN here and there.
    from scipy.stats import t

    return float(t.ppf(1 - level / 2, degrees))


def power_of(effect: float, num_pairs: int, level: float = LEVEL) -> float:
    """How often a difference of `effect` standard deviations is found.

    >>> round(power_of(1.0, 10), 3)
    0.803
    """
    return rejection_rate(effect, critical_value(num_pairs, level), num_pairs)


@functools.cache
def detectable_effect(num_pairs: int, power: float = POWER, level: float = LEVEL) -> float:
    """The difference, in standard deviations of a difference, that is found with this probability.

    >>> round(detectable_effect(4), 2)
    2.13
    """
    critical = critical_value(num_pairs, level)
    return _where(lambda effect: rejection_rate(effect, critical, num_pairs) - power, 1e3)


def _where(increasing: Callable[[float], float], high: float) -> float:
    """Where a function of a positive number crosses 0, by halving [0, high]."""
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if increasing(middle) >= 0 else (middle, high)
    return (low + high) / 2
