"""How well a line through the logarithms of step norms is known."""

import numpy as np

from dynloop.kernels import kernel

_MOST_ALIKE = 0.95  # autocorrelation of the rest beyond which a line's error says nothing


@kernel
def rate_errors(steps, regime):
    """Standard errors of the least-squares slope of ln(step) over each row's regime, steps of 0 left out.

    The rest of a fit to a decay is a slow curve or a beat, not independent noise: the error is widened by
    sqrt((1 + r) / (1 - r)), with r the correlation of each point's rest with the next one's, taken from 0 to .95.

    Args:
        steps: (n, T - 1) step norms.
        regime: (n,) steps of each row that are fitted.

    Returns:
        (n,) errors, per step; NaN for fewer than 4 points.
    """
    errors = np.full(len(steps), np.nan)
    for o in range(len(steps)):
        n, mean_t, mean_y = 0, 0.0, 0.0
        for t in range(regime[o]):
            if steps[o, t] > 0.0:
                n += 1
                mean_t += t
                mean_y += np.log(steps[o, t])
        if n < 4:
            continue
        mean_t /= n
        mean_y /= n
        tt, ty = 0.0, 0.0
        for t in range(regime[o]):
            if steps[o, t] > 0.0:
                tt += (t - mean_t) ** 2
                ty += (t - mean_t) * (np.log(steps[o, t]) - mean_y)
        square, product, before = 0.0, 0.0, 0.0
        for t in range(regime[o]):
            if steps[o, t] > 0.0:
                rest = np.log(steps[o, t]) - mean_y - ty / tt * (t - mean_t)
                square += rest * rest
                product += rest * before
                before = rest
        alike = min(max(product / square, 0.0), _MOST_ALIKE) if square > 0.0 else 0.0
        errors[o] = np.sqrt(square / (n - 2) / tt * (1.0 + alike) / (1.0 - alike))
    return errors
