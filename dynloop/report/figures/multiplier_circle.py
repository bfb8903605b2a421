"""Multipliers in the complex plane."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from dynloop.measurement import Measurement
from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import MOST_POINTS, groups_of, looks, new_axes, nothing, styled
from dynloop.report.figures.words import check_measurement, counted, excluded, plural, settings_of, subject_of


@styled
def multiplier_circle(spectrum: Measurement, *, by: str = "model") -> Figure:
    """Leading eigenvalues of the Jacobian, or multipliers of a cycle, in the unit circle; errors are drawn to scale.

    Args:
        spectrum: of `jacobian_spectrum` (or another with `eigenvalues_real` and `eigenvalues_imag`), a row a state.
        by: the label that separates the colours; all states are one group where there is no model.

    Returns:
        The figure; `caption_of` and `alt_of` give its words. Around every point stands a circle of its residual where
        that can be seen.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind, or an unknown label.

    Misleads:
        Eigenvalues describe the loop at its fixed points only. The residual bounds the error of a normal matrix; that
        of a nearly defective one is larger.
    """
    real = check_measurement(spectrum, "jacobian_spectrum(...)", variable="eigenvalues_real", dims=2)
    imag = check_measurement(spectrum, "jacobian_spectrum(...)", variable="eigenvalues_imag", dims=2)
    size = np.hypot(real, imag)
    error = size * spectrum["residuals"] if "residuals" in spectrum.variables else np.zeros_like(size)
    figure, axes = new_axes(width=4.4, height=4.4)
    known = np.isfinite(size)
    if known.any():
        axes.add_patch(Circle((0, 0), 1, fill=False, color="#333333", linewidth=1))
        axes.axhline(0, color="#bbbbbb", linewidth=0.6)
        axes.axvline(0, color="#bbbbbb", linewidth=0.6)
        reach = 1.08 * max(1.0, float(size[known].max()))
        groups = groups_of(spectrum.labels, spectrum.n_orbits, by, "model")
        for (name, mask), look in zip(groups, looks(), strict=False):
            own = known & mask[:, None]
            axes.scatter(real[own], imag[own], s=14, color=look["color"], marker=look["marker"], alpha=0.7,
                         linewidths=0, label=name, rasterized=int(known.sum()) > MOST_POINTS)
            for x, y, r in zip(real[own], imag[own], error[own], strict=True):
                if r > 0.005 * reach:
                    axes.add_patch(Circle((x, y), r, fill=False, color=look["color"], linewidth=0.5))
        axes.set(xlabel="real part", ylabel="imaginary part", xlim=(-reach, reach), ylim=(-reach, reach),
                 aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        if len(groups) > 1:
            figure.legend(loc="outside lower center", ncols=2)
        outside = int((size[known] > 1).sum())
        told = f"The largest modulus is {size[known].max():.4g}; {outside:,} of {int(known.sum()):,} lie outside."
    else:
        nothing(axes, "no multipliers to draw")
        told = "There are no multipliers to draw."
    worst = f"; largest error (residual) {np.nanmax(error[known]):.2g}, circles around points where it can be seen" \
        if known.any() else ""
    return described(
        figure, caption=f"The {real.shape[1]} leading eigenvalues of the Jacobian at "
                        f"{plural(spectrum.n_orbits, 'state')}{excluded(spectrum)}"
                        f"{subject_of(spectrum.labels)} and the unit circle{worst}. {told} "
                        f"n = {counted(spectrum.n_orbits, spectrum.labels, what='state')}; every one is shown."
                        + settings_of(spectrum.settings),
        alt=f"Points in the complex plane with the unit circle: leading eigenvalues. {told}")
