"""When an orbit comes to stay near its last state, and whether it still travels there."""

import numpy as np

from dynloop.kernels import kernel


@kernel
def arrivals(from_last, lengths, radius):
    """First step from which every distance to the last state is at most the radius.

    Args:
        from_last: (n, T) distances to the last finite state.
        lengths: (n,) finite steps, at least 1.
        radius: (n,).

    Returns:
        (n,) steps.
    """
    first = np.zeros(len(lengths), dtype=np.int64)
    for o in range(len(lengths)):
        t = lengths[o]
        while t > 0 and from_last[o, t - 1] <= radius[o]:
            t -= 1
        first[o] = t
    return first


@kernel
def _apart(squared, first, second, width):
    """Squared distance between the means of two windows of states, from the distances between the states."""
    between, within = 0.0, 0.0
    for i in range(width):
        for j in range(width):
            between += squared[first + i, second + j]
            within += squared[first + i, first + j] + squared[second + i, second + j]
    return max(between - 0.5 * within, 0.0) / (width * width)


@kernel
def travels_ahead(squared, lengths):
    """How far the mean state would travel if the record went on as long again at the pace of its last windows.

    The last three windows of an eighth of the record each have means a, b, c. A drift goes on in its direction, so
    that (b - a).(c - b) is its squared travel from window to window; for what wanders about a point the product is
    negative. Twice what white noise of these steps moves such means by (the step over the root of the width) is taken
    off. The travel goes on, shrinking from window to window by ||c - b|| / ||b - a||, or not at all where that is
    above 1.

    Args:
        squared: (n, T, T) squared distances.
        lengths: (n,) finite steps.

    Returns:
        (n,) distances; 0 for fewer than 16 steps, of which a drift cannot be told.
    """
    ahead = np.zeros(len(lengths))
    for o in range(len(lengths)):
        m = lengths[o]
        width = m // 8
        if width < 2:
            continue
        step = 0.0
        for t in range(m - 3 * width, m - 1):
            step += squared[o, t, t + 1]
        noise = 4.0 * step / (3 * width - 1) / width
        before = _apart(squared[o], m - 3 * width, m - 2 * width, width)
        late = _apart(squared[o], m - 2 * width, m - width, width)
        both = _apart(squared[o], m - 3 * width, m - width, width)
        onward = 0.5 * (both - before - late) - noise
        if onward > 0.0:
            ratio = np.sqrt(late / before) if late < before else 1.0
            go = np.sqrt(onward)
            for _ in range(m // width):
                go *= ratio
                ahead[o] += go
    return ahead
