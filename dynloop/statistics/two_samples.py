"""Two tables of unit values: t statistics, intervals, equivalence and effect sizes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

_FAR = 30.0  # t statistics from which their noncentrality is approximated


@dataclasses.dataclass(frozen=True)
class TwoSamples:
    """The means of two conditions and how well any b - rho a is known.

    Each table holds a value for each independent unit (rows) and, where `crossed`, each inner unit (columns). The
    variance of the difference adds that between rows, s_b^2 / n_b + rho^2 s_a^2 / n_a (of the row differences where
    rows are paired), with Satterthwaite's degrees of freedom: Welch's t, or the paired one. Crossed units add what
    varies between columns beyond the noise of their cells (two-way analysis of variance), if positive.

    Attributes:
        a, b: (n_units, n_inner), the baseline first.
        paired: row i of both is the same unit.
        crossed: columns are units, too.
        columns_paired: column j of both is the same unit.
    """

    a: np.ndarray
    b: np.ndarray
    paired: bool = False
    crossed: bool = False
    columns_paired: bool = False

    def at(self, rho: float = 1.0) -> tuple[float, float, float]:
        """The difference b - rho a, its standard error, and the degrees of freedom."""
        parts = [self.b - rho * self.a] if self.paired else [self.b, -rho * self.a]
        terms = [_of_mean(part.mean(1)) for part in parts]
        if self.crossed:
            columns = [part.mean(0) for part in parts]
            noise = [_cell_noise(part) for part in parts]
            joint = [(sum(columns), sum(noise))] if self.columns_paired else zip(columns, noise, strict=True)
            for column, own in joint:
                variance, df = _of_mean(np.asarray(column))
                terms.append((max(0.0, variance - own / len(column)), df))
        variances = np.array([v for v, _ in terms])
        total = float(variances.sum())
        below = float((variances**2 / np.array([df for _, df in terms])).sum())
        df = total**2 / below if below > 0 else float(terms[0][1])
        return float(sum(part.mean() for part in parts)), math.sqrt(total), df

    @property
    def means(self) -> tuple[float, float]:
        """Of the baseline and of the condition."""
        return float(self.a.mean()), float(self.b.mean())


def _of_mean(values: np.ndarray) -> tuple[float, float]:
    """Variance of a mean, and its degrees of freedom; exactly 0 where rounding alone tells the values apart."""
    spread = float(values.var(ddof=1))
    if spread <= (4 * np.finfo(float).eps * float(np.abs(values).max())) ** 2:
        spread = 0.0
    return spread / len(values), len(values) - 1


def _cell_noise(table: np.ndarray) -> float:
    """Variance of a column mean that comes from its cells alone."""
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return float((rest**2).sum()) / ((table.shape[0] - 1) * (table.shape[1] - 1)) / table.shape[0]


def two_sided(difference: float, error: float, df: float) -> float:
    """P-value of no difference; NaN where there is no spread to judge it by."""
    from scipy import special

    return float(2 * special.stdtr(df, -abs(difference) / error)) if error > 0 else math.nan


def difference_interval(pair: TwoSamples, level: float) -> tuple[float, float]:
    """Limits of b - a; NaN without any spread."""
    from scipy import special

    difference, error, df = pair.at()
    half = float(special.stdtrit(df, (1 + level) / 2)) * error if error > 0 else math.nan
    return difference - half, difference + half


def ratio_interval(pair: TwoSamples, level: float) -> tuple[float, float]:
    """Limits of b / a: the ratios rho for which b - rho a cannot be told from 0 (Fieller 1954).

    Infinite on both sides where the baseline itself cannot be told from 0; NaN without any spread.
    """
    from scipy import optimize, special

    mean_a, mean_b = pair.means

    def excess(rho: float) -> float:
        difference, error, df = pair.at(rho)
        return difference**2 - (float(special.stdtrit(df, (1 + level) / 2)) * error) ** 2

    if pair.at(1.0)[1] == 0:
        return math.nan, math.nan
    _, error, df = TwoSamples(np.zeros_like(pair.a), pair.a, crossed=pair.crossed).at(0.0)
    if mean_a == 0 or abs(mean_a) <= float(special.stdtrit(df, (1 + level) / 2)) * error:
        return -math.inf, math.inf
    rho = mean_b / mean_a
    step = max(pair.at(rho)[1] / abs(mean_a), 1e-12 * abs(rho))
    if pair.at(rho)[1] == 0:
        return rho, rho
    ends = []
    for side in (-1, 1):
        reach = step
        while excess(rho + side * reach) <= 0 and reach < 1e9 * step:
            reach *= 2
        if reach >= 1e9 * step:
            return -math.inf, math.inf
        ends.append(float(optimize.brentq(excess, rho, rho + side * reach, xtol=1e-13 * max(abs(rho), step),
                                          rtol=1e-12)))
    return ends[0], ends[1]


def equivalence(pair: TwoSamples, low: float, high: float, *, ratio: bool) -> tuple[float, float, float]:
    """Two one-sided tests (Schuirmann 1987): p-value of each, not above `low`, not below `high`; the larger counts.

    Returns:
        p-value against "at most low", against "at least high", and the larger of the two. NaN without any spread.
    """
    from scipy import special

    found = []
    for bound, sign in ((low, -1.0), (high, 1.0)):
        difference, error, df = pair.at(bound if ratio else 1.0)
        away = math.copysign(1.0, pair.means[0]) * difference if ratio else difference - bound
        found.append(float(special.stdtr(df, sign * away / error)) if error > 0 else math.nan)
    return found[0], found[1], max(found)


def hedges_g(pair: TwoSamples, level: float) -> tuple[float, float, float]:
    """Standardised difference and its interval: (mean b - mean a) over the pooled SD of the units, times J(df).

    J(df) = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)) takes out the bias of few units (Hedges 1981), with
    df = n_a + n_b - 2, or n - 1 for pairs. The interval inverts the noncentral t distribution of the pooled, or
    paired, t statistic; from |t| = 30 on approximately. NaN without any spread.
    """
    a, b = pair.a.mean(1), pair.b.mean(1)
    n_a, n_b = len(a), len(b)
    pooled = math.sqrt(((n_a - 1) * a.var(ddof=1) + (n_b - 1) * b.var(ddof=1)) / (n_a + n_b - 2))
    if pair.paired:
        df, scale = n_a - 1, math.sqrt(_of_mean(b - a)[0])
    else:
        df, scale = n_a + n_b - 2, pooled * math.sqrt(1 / n_a + 1 / n_b)
    if not pooled > 0 or not scale > 0:
        return math.nan, math.nan, math.nan
    correction = bias_correction(df)
    t = float(b.mean() - a.mean()) / scale
    tail = (1 - level) / 2
    low, high = _noncentralities(df, t, tail)
    size = correction * scale / pooled
    return t * size, low * size, high * size


def _noncentralities(df: float, t: float, tail: float) -> tuple[float, float]:
    """Noncentralities for which t lies at the upper and at the lower tail of its distribution.

    They are quantiles of t chi / sqrt(df) - z, chi and z independent. From |t| = 30 on, where scipy's search may not
    end, and from 1e6 on stops there, the two distances from t are taken in quadrature: within 0.3 %
    from three degrees of freedom on.
    """
    from scipy import special

    if abs(t) < _FAR:
        return float(special.nctdtrinc(df, 1 - tail, t)), float(special.nctdtrinc(df, tail, t))
    z = float(special.ndtri(tail))
    ends = []
    for sign, q in ((-1.0, 1 - tail), (1.0, tail)):  # chdtri is the inverse of the upper tail
        away = abs(t) * (math.sqrt(float(special.chdtri(df, q)) / df) - 1)
        ends.append(abs(t) + sign * math.hypot(away, z))
    low, high = ends
    return (low, high) if t > 0 else (-high, -low)


def bias_correction(df: float) -> float:
    """Hedges' J, exact."""
    return math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)
