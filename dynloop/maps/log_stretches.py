"""Log stretches of tangents along an orbit: from where on they are alike, and how well their means are known."""

from __future__ import annotations

import numpy as np

_MOST_BLOCKS, LEAST_BLOCKS = 32, 4
_SHRINK = 3 / 4  # the orbit is looked at in parts, backwards, each beginning at this share of its end
_LEFT_OUT = 8  # the first eighth is left out in any case: what is too faint for one orbit biases the mean of many
_DIFFERENT = 0.02  # p-value at which an earlier part of the orbit is not like the later ones
_SAME = 1e-11  # nats: parts that differ by less are alike, however sure the difference
_REPEATS = 1e-3  # distance of stretches a period apart, over their spread
_TURNING = 0.03  # sine of the angle by which the first tangent of a complex pair turns in a step, at least


def pairs_alike(sums: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log stretches and turns with both tangents of each plane that turns, that of a complex pair, made alike."""
    sums, turns = sums.copy(), turns.copy()
    i = 0
    while i + 1 < len(turns):
        steady = np.ptp(sums[:, i:i + 2].sum(1)) <= 0.1 * np.ptp(sums[:, i])
        if turns[i] > _TURNING and turns[i + 1] < 0.1 * turns[i] and steady:
            sums[:, i:i + 2] = sums[:, i:i + 2].mean(1, keepdims=True)
            turns[i] = turns[i + 1]
            i += 1
        i += 1
    return sums, turns


def quantile(freedom: int, probability: float) -> float:
    """Of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def _memory(series: np.ndarray) -> float:
    """Sum of the autocorrelations of the columns (N, c) up to where pairs of them turn negative; the largest."""
    n, found = len(series), 1.0
    away = series - series.mean(0)
    power = np.abs(np.fft.rfft(away, 1 << (2 * n - 1).bit_length(), axis=0)) ** 2
    correlation = np.fft.irfft(power, axis=0)[:n]
    for own in correlation.T[correlation[0] > 0]:
        pairs = own[:n // 2 * 2].reshape(-1, 2).sum(1) / own[0]  # Geyer's initial positive sequence
        end = int(np.argmax(pairs <= 0)) if (pairs <= 0).any() else len(pairs)
        found = max(found, 2 * pairs[:end].sum() - 1)
    return found


def _period(rates: np.ndarray) -> int:
    """Steps after which log stretches (N, c) repeat, on a cycle of the loop; 1 where they do not."""
    usable = rates[:, np.isfinite(rates).all(0)]
    n = len(usable)
    spread = usable.var(0).sum()
    if spread > _SAME**2:
        back = np.square(usable[::-1] - usable[-1]).sum(1)[:n // LEAST_BLOCKS + 1]
        for p in np.flatnonzero(back <= (10 * _REPEATS) ** 2 * spread)[1:]:  # the last ones first
            if p > 1 and np.square(usable[p:] - usable[:-p]).sum(1).mean() <= _REPEATS**2 * spread:
                return int(p)
    return 1


def whole_periods(sums: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log stretches and lengths with every period of the last quarter taken together; what is left goes first."""
    n = len(sums)
    p = _period((sums / lengths[:, None])[n - max(n // 4, min(n, 2 * LEAST_BLOCKS)):])
    left = n % p
    if p == 1 or n // p < LEAST_BLOCKS:
        return sums, lengths
    return sums[left:].reshape(-1, p, sums.shape[1]).sum(1), lengths[left:].reshape(-1, p).sum(1)


def block_means(rates: np.ndarray) -> np.ndarray:
    """Means over blocks of a series (N, k), (n_blocks, k), at least four; those that do not fill a block go first."""
    n = len(rates)
    usable = rates[:, np.isfinite(rates).all(0)]
    memory = _memory(usable) if usable.shape[1] else 1.0
    n_blocks = min(max(LEAST_BLOCKS, int(n / (2 * memory))), _MOST_BLOCKS, n)
    size = n // n_blocks
    return rates[n - n_blocks * size:].reshape(n_blocks, size, -1).mean(1)


def half_widths(sums: np.ndarray, lengths: np.ndarray, turns: np.ndarray, skews: np.ndarray, n_steps: int,
           confidence_level: float) -> np.ndarray:
    """Half widths of the intervals of the means, (k,), over the end of an orbit of `n_steps`."""
    mixed = 2 * skews * turns / (1 + (turns * lengths.sum()) ** 2)
    since = n_steps - lengths.sum() / 2  # the middle of what is averaged
    sums, lengths = whole_periods(sums, lengths)
    rates = sums / lengths[:, None]
    blocks = block_means(rates)
    chance = quantile(len(blocks) - 1, 0.5 + 0.5 * confidence_level) * blocks.std(0, ddof=1) / np.sqrt(len(blocks))
    slope, error, _, freedom = _line(rates)
    sure = np.abs(slope) > quantile(freedom, 1 - _DIFFERENT / 2 / len(slope)) * error
    # what falls as 1 / t still lacks t times its slope
    return chance + np.where(sure, np.abs(slope) * max(len(rates), since * len(rates) / lengths.sum()), 0.0) + mixed


def _line(series: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Slope of the columns (N, c), its error, variance of a mean of N about the line, degrees of freedom."""
    n = len(series)
    time = np.arange(n) - (n - 1) / 2
    slope = time @ series / (time @ time)
    blocks = block_means(series - np.outer(time, slope))
    freedom = len(blocks) - 2
    variance = ((blocks - blocks.mean(0)) ** 2).sum(0) / freedom / len(blocks)
    return slope, np.sqrt(12 * variance) / n, variance, freedom


def settled(sums: np.ndarray, lengths: np.ndarray) -> int:
    """The part from which on the log stretches (N, k) of an orbit are all alike, in whole periods to its end."""
    n = len(sums)
    sums, lengths = whole_periods(sums, lengths)
    period = n // len(sums)
    volumes = (sums / lengths[:, None]).cumsum(1)  # growth of areas, volumes, ...: aligned one after another
    first = min(int(len(sums) * _SHRINK), max(len(sums) - LEAST_BLOCKS, 0))
    least = len(sums) // _LEFT_OUT
    while least <= (early := int(first * _SHRINK)) <= first - 2:
        late = volumes[first:]
        _, _, variance, freedom = _line(late)
        doubt = np.sqrt(variance * (1 + len(late) / (first - early)))
        apart = np.abs(late.mean(0) - volumes[early:first].mean(0))
        if (apart > quantile(freedom, 1 - _DIFFERENT / 2 / volumes.shape[1]) * doubt + _SAME).any():
            break
        first = early
    return n - period * (len(sums) - first)
