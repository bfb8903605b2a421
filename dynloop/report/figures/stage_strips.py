"""The stage of every layer in every loop, as coloured strips."""

from __future__ import annotations

import warnings

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dynloop.report.cells import number
from dynloop.report.figures.drawing import described
from dynloop.report.figures.stage_curves import spaced
from dynloop.report.figures.style import COLOURS, styled
from dynloop.report.figures.words import plural
from dynloop.stages.clusters import StageClusters
from dynloop.statistics import estimate

MOST = 32  # recurrences, of more as many at equal ratios
_MOST_DIGITS = 400  # cells with the number of their stage


@styled
def stage_strips(stages: StageClusters, *, confidence_level: float = 0.95) -> Figure:
    """Stage by recurrence (rows) and layer (columns), each stage a colour and a number.

    Args:
        stages: of `stage_clusters`.
        confidence_level: of the interval of the agreement between loops, over prompts.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: something else.

    Misleads:
        A strip holds the stage that most prompts have there. k-means finds stages in anything: read the agreement
        beside its null, and the stability.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.report.figures import alt_of, stage_strips
        >>> from dynloop.stages import stage_clusters
        >>> states = np.random.default_rng(0).normal(size=(8, 6, 5, 3, 4))  # prompt, layer, token, recurrence, dim
        >>> states[:, 3:] *= 10
        >>> prompt, layer, token = (i.ravel() for i in np.indices((8, 6, 5)))
        >>> orbits = Trajectories(states.reshape(240, 3, 4), labels={"prompt": prompt, "layer": layer, "token": token})
        >>> alt_of(stage_strips(stage_clusters(orbits, quantities=["residual_norm"], n_clusters=2)))
        'Strips of 2 stages over 6 layers in 3 recurrences. The first reads 1 1 1 2 2 2; 3 of 3 read the same.'
    """
    if not isinstance(stages, StageClusters):
        raise TypeError(f"stage_strips draws what stage_clusters gives; got {type(stages).__name__}.")
    rows = spaced(np.arange(len(stages.recurrences)), by_ratio=True, most=MOST)
    sequences, recurrences = stages.sequences[rows], stages.recurrences[rows]
    n, n_layers = sequences.shape
    k = stages.n_clusters
    colours = [COLOURS[i % 6] for i in range(k)]  # black is left for the digits
    figure = Figure(figsize=(min(6.6, 2.2 + 0.42 * n_layers), min(5.6, 1.3 + 0.2 * n)))
    axes = figure.add_subplot()
    axes.grid(visible=False)
    axes.imshow(sequences, cmap=ListedColormap(colours), vmin=0.5, vmax=k + 0.5, aspect="auto", interpolation="nearest",
                alpha=0.75)
    for at in np.arange(1, n) - 0.5:
        axes.axhline(at, color="white", linewidth=1.5)
    if sequences.size <= _MOST_DIGITS:
        for i, j in np.ndindex(n, n_layers):
            axes.text(j, i, str(sequences[i, j]), ha="center", va="center", fontsize=7)
    layers = spaced(np.arange(n_layers), by_ratio=False, most=16)
    axes.set_xticks(layers, [str(stages.layers[i]) for i in layers])
    axes.set_yticks(range(n), [str(r) for r in recurrences])
    if n > 16:
        few = spaced(np.arange(n), by_ratio=False, most=12)
        axes.set_yticks(few, [str(recurrences[i]) for i in few])
    axes.tick_params(length=0)
    axes.set(xlabel="layer", ylabel="recurrence")
    figure.legend(handles=[Patch(color=colours[i], alpha=0.75, linewidth=0, label=f"stage {i + 1}") for i in range(k)],
                  loc="outside lower center", ncols=min(k, 3 if n_layers < 6 else 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few prompts: their number is said
        agreement = estimate(stages.by_prompt, statistic="mean", variable="agreement", resample="prompt",
                             confidence_level=confidence_level, method="t")
    stability = "; ".join(f"k = {size}: {value:.2f}" for size, value in stages.stability.items())
    same = int((sequences == sequences[0]).all(1).sum())
    return described(
        figure, caption=f"Stage of every layer in {plural(n, 'recurrence')}"
                        + (f" of {len(stages.recurrences)}, at equal ratios" if n < len(stages.recurrences) else "")
                        + f": the one that most of n = {plural(stages.by_prompt.n_orbits, 'prompt')} have, of {k} "
                        f"found by k-means ({stages.note}). Loops agree at {number(agreement)} (adjusted Rand index "
                        f"over layers, mean over pairs of loops and prompts; {100 * confidence_level:g} % interval "
                        f"over prompts, Student's t; layers in other orders: {stages.null_mean:.3g}, p = "
                        f"{stages.p_value:.3g} where {stages.smallest_p:.3g} is the smallest there can be); "
                        f"{100 * stages.same_stage:.0f} % of the layers have the same stage "
                        f"({100 * stages.null_same:.0f} % in other orders, "
                        f"p = {stages.same_p_value:.3g}). Stability over halves of the prompts: {stability}.",
        alt=f"Strips of {plural(k, 'stage')} over {plural(n_layers, 'layer')} in {plural(n, 'recurrence')}. The first "
            f"reads {' '.join(map(str, sequences[0]))}; {same} of {n} read the same.")
