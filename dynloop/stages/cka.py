"""Centred kernel alignment that token dependence within prompts does not inflate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dynloop.settings import check_number
from dynloop.statistics import Estimate
from dynloop.statistics.intervals import Spread, spread, student

DEBIAS = ("prompt", "row", None)
_LEAST = {"prompt": 4, "row": 4, None: 2}  # groups of tokens that the statistic takes


@dataclasses.dataclass(frozen=True, eq=False)
class HsicSums:
    """Everything that the dependence of two representations, and of each with itself, needs of the tokens read so far.

    Sums over groups g of tokens (a prompt, or a single token), with group means a, b and mean products P = x'y / n; one
    prompt is read once and forgotten. `a + b` are the sums of both parts, `a - b` those without a part. All arrays may
    have leading axes, of pairs of representations.

    Attributes:
        n: groups, of equal weight.
        product, means: sums of P (..., d, e) and of a b' (..., d, e).
        x, y: sums of a (..., d) and of b (..., e).
        square, cross: sums of ||P||^2 and of a' P b, (...).
        px, py: sums of P b (..., d) and of P' a (..., e).
        xx, yy, xxyy: sums of |a|^2, |b|^2 and |a|^2 |b|^2, (...).
        xyy, yxx: sums of a |b|^2 (..., d) and of b |a|^2 (..., e).
    """

    n: float
    product: np.ndarray
    means: np.ndarray
    x: np.ndarray
    y: np.ndarray
    square: np.ndarray
    cross: np.ndarray
    px: np.ndarray
    py: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xxyy: np.ndarray
    xyy: np.ndarray
    yxx: np.ndarray

    @classmethod
    def of_prompt(cls, x: np.ndarray, y: np.ndarray) -> HsicSums:
        """The sums of one prompt whose tokens are one group: x (..., tokens, d), y (..., tokens, e)."""
        p = x.swapaxes(-1, -2) @ y / x.shape[-2]
        a, b = x.mean(-2), y.mean(-2)
        pb, pa = (p @ b[..., None])[..., 0], (p.swapaxes(-1, -2) @ a[..., None])[..., 0]
        aa, bb = (a * a).sum(-1), (b * b).sum(-1)
        return cls(1, p, a[..., :, None] * b[..., None, :], a, b, np.einsum("...ij,...ij->...", p, p),
                   (a * pb).sum(-1), pb, pa, aa, bb, aa * bb, a * bb[..., None], b * aa[..., None])

    @classmethod
    def of_rows(cls, x: np.ndarray, y: np.ndarray) -> HsicSums:
        """The sums of tokens each of which is a group: x (..., tokens, d), y (..., tokens, e)."""
        p, aa, bb = x.swapaxes(-1, -2) @ y, (x * x).sum(-1), (y * y).sum(-1)
        both = (aa * bb).sum(-1)
        xyy, yxx = np.einsum("...ti,...t->...i", x, bb), np.einsum("...ti,...t->...i", y, aa)
        return cls(x.shape[-2], p, p, x.sum(-2), y.sum(-2), both, both, xyy, yxx, aa.sum(-1), bb.sum(-1), both, xyy,
                   yxx)

    def __add__(self, other: HsicSums) -> HsicSums:
        return HsicSums(*(mine + its for mine, its in zip(_parts(self), _parts(other), strict=True)))

    def __sub__(self, other: HsicSums) -> HsicSums:
        return HsicSums(*(mine - its for mine, its in zip(_parts(self), _parts(other), strict=True)))

    def dependence(self) -> np.ndarray:
        """U, the unbiased estimate of the Hilbert-Schmidt independence criterion of linear kernels; NaN below 4 groups.

        With weights of one token of each of its groups,

            U = mean_{2 distinct groups} K_ij L_ij + mean_{4 distinct} K_ij L_qr - 2 mean_{3 distinct} K_ij L_iq
        """
        n = self.n
        if n < 4:
            return np.full(self.square.shape, np.nan)
        x, y, m = self.x, self.y, self.means
        pairs = _dot(self.product, self.product) - self.square
        three = _form(x, self.product, y) - (x * self.px).sum(-1) - (y * self.py).sum(-1) + 2 * self.cross \
            - _dot(self.product, m)
        one, two = (x * x).sum(-1) - self.xx, (y * y).sum(-1) - self.yy
        shared = _form(x, m, y) - (x * self.xyy).sum(-1) - (y * self.yxx).sum(-1) + self.xxyy
        four = one * two - 4 * shared + 2 * (_dot(m, m) - self.xxyy)
        return pairs / (n * (n - 1)) - 2 * three / (n * (n - 1) * (n - 2)) + four / (n * (n - 1) * (n - 2) * (n - 3))

    def biased(self) -> np.ndarray:
        """||mean of (x - mean x)(y - mean y)'||^2, the criterion without any correction."""
        covariance = self.product / self.n - self.x[..., :, None] * self.y[..., None, :] / self.n**2
        return _dot(covariance, covariance)


@dataclasses.dataclass(frozen=True, eq=False)
class CkaSums:
    """The three dependences that the alignment of x and y takes; mergeable as `HsicSums`."""

    xy: HsicSums
    xx: HsicSums
    yy: HsicSums
    debias: str | None

    @classmethod
    def of_prompt(cls, x: np.ndarray, y: np.ndarray, debias: str | None = "prompt") -> CkaSums:
        """Of the tokens of one prompt, (..., tokens, d) and (..., tokens, e).

        Take the same constant from all prompts' x first, and from y, where their means are large: the sums of squares
        of squares would drown the rest. The result does not depend on it otherwise.
        """
        of = HsicSums.of_prompt if debias == "prompt" else HsicSums.of_rows
        return cls(of(x, y), of(x, x), of(y, y), debias)

    def __add__(self, other: CkaSums) -> CkaSums:
        return CkaSums(self.xy + other.xy, self.xx + other.xx, self.yy + other.yy, self.debias)

    def __sub__(self, other: CkaSums) -> CkaSums:
        return CkaSums(self.xy - other.xy, self.xx - other.xx, self.yy - other.yy, self.debias)

    def value(self) -> np.ndarray:
        """The alignment; NaN where a representation does not depend on itself (constant, or too few groups)."""
        xy, xx, yy = ((s.biased() if self.debias is None else s.dependence()) for s in (self.xy, self.xx, self.yy))
        return aligned(xy, xx, yy)


def aligned(xy: np.ndarray, xx: np.ndarray, yy: np.ndarray) -> np.ndarray:
    """The ratio xy / sqrt(xx yy), NaN where either is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((xx > 0) & (yy > 0), xy / np.sqrt(np.maximum(xx, 0)) / np.sqrt(np.maximum(yy, 0)), np.nan)


def cka(x: Any, y: Any, *, prompt: Any, debias: str | None = "prompt", confidence_level: float = 0.95) -> Estimate:
    """How alike two representations of the same tokens are, with an interval over prompts.

        CKA = U_xy / sqrt(U_xx U_yy)
        U_xy = mean_{ij} K_ij L_ij + mean_{ijqr} K_ij L_qr - 2 mean_{ijq} K_ij L_iq

    with K = x x' and L = y y', over pairs, quadruples and triples of tokens of *distinct prompts*; every prompt weighs
    the same. One representation turned, scaled or moved is the same representation: 1. Independent ones give 0 on
    average, however the tokens of a prompt hang together, and hence may come out below 0: the value is not clamped.
    With one token a prompt this is the usual debiased form (HSIC_1). Exact, in one pass over the prompts.

    Args:
        x: (tokens, d), the first representation.
        y: (tokens, e), the second, of the same tokens.
        prompt: (tokens,), the prompt of each.
        debias: "prompt"; "row", which takes all tokens as independent; or None, which corrects nothing.
        confidence_level: of the interval.

    Returns:
        The estimate; its interval is t's over prompts, from the value without each of them (jackknife).

    Raises:
        ValueError: shapes that do not agree, numbers that are not finite, a constant representation, or fewer than 5
            prompts (4 are needed when one is left out; 3 without debias="prompt").

    Misleads:
        "row" and None are there to be compared with. Independent representations of 32 prompts of 32 tokens in 64
        dimensions, the tokens of a prompt correlated at .9, score .34 with None, .31 with "row", and .00 with "prompt".
        What tokens share by position, whatever the prompt, counts as likeness. A few dimensions of massive activation
        decide the value alone: standardise the dimensions if that is not what is asked. The interval is of new prompts
        for these models; where likeness is weak it is too long (of 32 prompts, 95 % covers 99 % at 0, 98 % at .25).

    Source:
        Kornblith et al. 2019 (arXiv 1905.00414); Song et al. 2012, J. Mach. Learn. Res. 13, 1393 (HSIC_1). Tuples of
        distinct prompts: here.

    Example:
        >>> import numpy as np
        >>> from dynloop.stages import cka
        >>> rng = np.random.default_rng(0)
        >>> x, prompt = rng.normal(size=(200, 3)), np.arange(200) // 10
        >>> turned = 5 * x[:, ::-1] + 7
        >>> print(round(cka(x, turned, prompt=prompt).value, 9))
        1.0
    """
    if debias not in DEBIAS:
        raise ValueError(f"debias must be one of 'prompt', 'row', None; got {debias!r}. Choose one.")
    check_number("confidence_level", confidence_level, lambda level: 0 < level < 1, "between 0 and 1 (default 0.95)")
    x, y, prompt = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), np.asarray(prompt)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or prompt.shape != (len(x),) or not x.size or not y.size:
        raise ValueError(f"x, y and prompt must have shapes (tokens, d), (tokens, e) and (tokens,); got {x.shape}, "
                         f"{y.shape} and {prompt.shape}. Give the same tokens in the same order.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x and y must be finite numbers; got NaN or infinity. Leave those prompts out.")
    _, place, sizes = np.unique(prompt, return_inverse=True, return_counts=True)
    if len(sizes) <= _LEAST[debias] and (debias == "prompt" or len(sizes) < 3):
        raise ValueError(f"CKA over tokens of distinct prompts needs {5 if debias == 'prompt' else 3} prompts or more, "
                         f"for its interval; got {len(sizes)}. Record more prompts.")
    order = np.argsort(place, kind="stable")
    cuts = np.cumsum(sizes)[:-1]
    xs, ys = (np.split((v - v.mean(0))[order], cuts) for v in (x, y))
    parts = [CkaSums.of_prompt(a, b, debias) for a, b in zip(xs, ys, strict=True)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    value = float(whole.value())
    without = np.array([float((whole - part).value()) for part in parts])
    if not np.isfinite(value) or not np.isfinite(without).all():
        raise ValueError("a representation is constant, or does not differ between prompts, in all prompts or all but "
                         "one: its likeness to another is undefined. Check the states, or record more prompts.")
    known = jackknife(without, sizes if debias != "prompt" else np.ones(len(sizes)))
    low, high = student(value, known, confidence_level)
    words = {"prompt": "debiased over tokens of distinct prompts", "row": "debiased over rows", None: "biased"}[debias]
    return Estimate("cka", words, value, low, high, "", confidence_level, f"t({known.freedom:.3g}), jackknife",
                    "prompt", len(sizes), len(x), {}, {"debias": debias}, {}, units={"prompt": len(sizes)})


def jackknife(without: np.ndarray, sizes: np.ndarray) -> Spread:
    """How well a value is known from those without each prompt; equal but for rounding is equal."""
    known = spread(without, sizes)
    rounding = 1e-12 * max(1.0, float(np.abs(without).max()))
    return known if known.error > rounding else dataclasses.replace(known, error=0.0)


def _parts(sums: HsicSums) -> list[Any]:
    return [getattr(sums, field.name) for field in dataclasses.fields(sums)]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...ij,...ij->...", a, b)


def _form(x: np.ndarray, matrix: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", x, (matrix @ y[..., None])[..., 0])
