"""Prediction and suppression neurons: MLP neurons that write towards, or away from, a few tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynloop.measurement import Measurement
from dynloop.models import LoopedModel, load
from dynloop.models.mlp_outputs import MlpOutput, mlp_outputs
from dynloop.models.unembedding import gain_of
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole

MOMENTS = ("mean", "variance", "skew", "kurtosis")
CHUNK = 2**22  # cosines in memory at once


def neuron_classes(model: LoopedModel | nn.Module | str | Path | None = None, *,
                   w_out: Sequence[torch.Tensor] | torch.Tensor | None = None,
                   unembedding: torch.Tensor | None = None, kurtosis_threshold: float = 10.0, fold: bool = True,
                   centre: bool | None = None, chunk: int = CHUNK) -> Measurement:
    """How many MLP neurons of each layer promote a few tokens, and how many suppress a few.

        c[v] = cos(w, u_v), over all tokens v of the vocabulary
        kurtosis = mean z^4 (3 for a normal distribution; not the excess), skew = mean z^3,  z = (c - mean c) / sd c

    of what a neuron writes, w (its column of the MLP's output matrix), and the unembedding u_v of each token. A
    prediction neuron has kurtosis > 10 and skew > 0, a suppression neuron kurtosis > 10 and skew < 0. Weights alone
    decide: the answer depends on no input and is the same in every recurrence, which all share them.

    With fold=True the gains of norms are taken into the weights:

    * of the final norm, into every u_v;
    * of a norm of the MLP's output before it is added (sandwich, as in Ouro), into w;
    * of a norm of the stream that it was added to, at the end of the layer (around the residual, as in Huginn), into w
      too: it multiplies what the neuron has just written as it does everything else. That it also divides by the length
      of the stream is no change of direction. Norms that the stream passes later, of other layers or at the end of the
      recurrence, are not folded: how often they come depends on the recurrence.
    * LayerNorm takes the mean off, and so does the folding: of w. RMSNorm does not, and nothing is centred.

    Args:
        model: as in `capture`, or a feed-forward model (`dynloop.models.feed_forward`); its layers' matrices are found
            by a short run. Leave it out to give matrices.
        w_out: what neurons write, (neurons, width) of one layer or a list of them, gains folded in.
        unembedding: (tokens, width), gains folded in; with a model, in place of its own.
        kurtosis_threshold: above which a neuron is of either class.
        fold: whether gains are folded. False takes the weights as they are.
        centre: whether the mean over features is taken off every w; by default where the final norm of the model does.
        chunk: cosines in memory at once; the answer does not depend on it.

    Returns:
        A row a layer, labelled `layer` (within its part, from 1) and, of a model, `model`, `part` ("prelude", "block"
        or "coda"), `path` and `norm` (that which is folded into w: "branch", "stream" or ""). `share_prediction` and
        `share_suppression` of the layer's neurons, `n_prediction`, `n_suppression`, `n_neurons`, and of every neuron
        (layers, neurons) `kurtosis`, `skew`, `mean` and `variance` of its cosines, NaN beyond a layer's last neuron and
        for neurons that write nothing, which are in neither class. `NOT_FINITE`: weights that are not. `NOT_FOUND`: no
        neuron that writes.

    Raises:
        ValueError: neither a model nor matrices, or shapes that do not fit; a model whose logits are no linear function
            of its normed state (ALBERT's head is a network), or whose layers end in no matrix or in experts.

    Misleads:
        With excess kurtosis the threshold would be 7, not 10. Kurtosis over V tokens cannot exceed V - 2 + 1 / (V - 1):
        below 12 tokens no neuron is of either class, and small vocabularies of bytes reach 10 less easily than those of
        words. Tokens that training never showed are alike, and a direction that they share makes neurons look like
        suppression neurons. What counts is the direct path to the output: in a loop, what the block writes reaches it
        through all later recurrences and the coda, except in the last layers. Compare with an untrained copy
        (`dynloop.models.untrained`).

    Source:
        Gurnee et al. 2024 (arXiv 2401.12181), whose code takes mean z^4; Lad et al. 2024 (arXiv 2406.19384); Blayney et
        al. 2026 (arXiv 2604.11791), figures 32 and 33. The folding of RMSNorm and of sandwich norms is ours.

    Example:
        >>> import torch
        >>> from dynloop.stages.neuron_classes import neuron_classes
        >>> tokens = torch.eye(64)  # tokens of orthogonal directions
        >>> flat = torch.randn(64, generator=torch.Generator().manual_seed(0))
        >>> m = neuron_classes(w_out=torch.stack((3 * tokens[5], -tokens[9], flat)), unembedding=tokens)
        >>> int(m["n_prediction"][0]), int(m["n_suppression"][0]), int(m["n_neurons"][0])
        (1, 1, 3)
        >>> m["kurtosis"].round(3)  # 64 - 2 + 1/63 twice
        array([[62.016, 62.016,  3.465]])
    """
    check_number("kurtosis_threshold", kurtosis_threshold, lambda v: v > 0, "a positive number (default 10; a normal "
                 "distribution has 3)")
    check_whole("chunk", chunk, 1, f"a whole number of at least 1 (default {CHUNK})")
    for name, value, allowed in (("fold", fold, (True, False)), ("centre", centre, (True, False, None))):
        if not any(value is one for one in allowed):
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}.")
    if model is not None and w_out is not None:
        raise ValueError("w_out says what neurons write, and so does the model. Give one of them; w_out needs "
                         "unembedding=.")
    layers, tokens, gain, centred, labels = _given(w_out, unembedding) if model is None else \
        _of_model(load(model), unembedding, fold)
    centred = centred if centre is None else centre
    found, outcomes, vocabulary = [], [], _Vocabulary(tokens, gain, max(1, chunk // 1024))
    for layer in layers:  # one of them in memory in the precision of the computation
        weights = layer if isinstance(layer, torch.Tensor) else _written(layer, fold)
        own = weights - weights.mean(1, keepdim=True) if centred else weights
        finite = bool(own.isfinite().all()) and vocabulary.finite
        found.append(_moments(own, vocabulary, min(chunk, 1024)) if finite else
                     np.full((len(MOMENTS), len(own)), np.nan))
        writes = bool(np.isfinite(found[-1]).all(0).any())
        outcomes.append(Outcome.FOUND if writes else Outcome.NOT_FOUND if finite else Outcome.NOT_FINITE)
    most = max(len(own[0]) for own in found)
    values: dict[str, np.ndarray] = {}
    moments = np.stack([np.pad(m, ((0, 0), (0, most - m.shape[1])), constant_values=np.nan) for m in found], 1)
    skew, kurtosis = moments[MOMENTS.index("skew")], moments[MOMENTS.index("kurtosis")]
    n_neurons = np.array([float(len(own[0])) for own in found])
    counts = {"prediction": ((kurtosis > kurtosis_threshold) & (skew > 0)).sum(1),
              "suppression": ((kurtosis > kurtosis_threshold) & (skew < 0)).sum(1)}
    values |= {f"share_{name}": n / n_neurons for name, n in counts.items()}
    values |= {f"n_{name}": n.astype(float) for name, n in counts.items()}
    values |= {"n_neurons": n_neurons, "kurtosis": kurtosis, "skew": skew, "mean": moments[0], "variance": moments[1]}
    for row, outcome in enumerate(outcomes):
        if outcome is not Outcome.FOUND:
            for numbers in values.values():
                numbers[row] = np.nan
    return Measurement("neuron_classes", values, outcomes, labels=labels,
                       settings={"kurtosis_threshold": float(kurtosis_threshold), "fold": fold, "centred": centred,
                                 "n_tokens": vocabulary.n})


class _Vocabulary:
    """Directions of all tokens, some at a time: no copy of the whole matrix is made."""

    def __init__(self, tokens: torch.Tensor, gain: torch.Tensor | None, size: int) -> None:
        self.tokens, self.gain, self.size = tokens, gain, size
        self.dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        lengths = torch.cat([rows.norm(dim=1) for rows in self._rows()])
        self.finite = bool(lengths.isfinite().all())
        self.kept = lengths > 0  # a token without a direction has no cosine
        self.n = int(self.kept.sum())

    def _rows(self) -> Iterator[torch.Tensor]:
        for rows in self.tokens.split(self.size):
            wide = rows.to(self.dtype)
            yield wide if self.gain is None else wide * self.gain.to(wide)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for rows, kept in zip(self._rows(), self.kept.split(self.size), strict=True):
            some = rows[kept]
            yield some / some.norm(dim=1, keepdim=True)


def _moments(weights: torch.Tensor, tokens: _Vocabulary, n_rows: int) -> np.ndarray:
    """(mean, variance, skew, kurtosis) over tokens of the cosines with each row of weights, in double precision."""
    found = np.full((len(MOMENTS), len(weights)), np.nan)
    if not tokens.n:
        return found
    middle = sum((part.sum(0, dtype=torch.float64) for part in tokens), torch.zeros((), dtype=torch.float64,
                                                                                    device=weights.device)) / tokens.n
    for first in range(0, len(weights), n_rows):
        rows = weights[first:first + n_rows].to(tokens.dtype)
        own = rows / rows.norm(dim=1, keepdim=True)
        mean = own.double() @ middle
        sums = torch.zeros(3, len(own), dtype=torch.float64, device=own.device)
        for part in tokens:
            apart = (own @ part.T).sub_(mean.to(own)[:, None])
            power = apart * apart
            sums[0] += power.sum(1, dtype=torch.float64)
            sums[1] += (power * apart).sum(1, dtype=torch.float64)
            sums[2] += power.square_().sum(1, dtype=torch.float64)
        second, third, fourth = sums / tokens.n
        # cosines that are all the same but for rounding have no shape
        second = torch.where(second > (16 * torch.finfo(own.dtype).eps) ** 2, second, torch.nan)
        numbers = torch.stack((mean, second, third / second ** 1.5, fourth / second ** 2))
        numbers[:, ~numbers.isfinite().all(0)] = torch.nan
        found[:, first:first + n_rows] = numbers.cpu().numpy()
    return found


# layers, unembedding, the gain to fold into it, whether writing weights are centred, labels
Given = tuple[Sequence[torch.Tensor | MlpOutput], torch.Tensor, torch.Tensor | None, bool, dict[str, np.ndarray]]


def _given(w_out: Any, unembedding: Any) -> Given:
    if w_out is None or unembedding is None:
        raise ValueError("neuron_classes needs a model, or w_out (neurons, width) and unembedding (tokens, width). "
                         "Give either.")
    layers = [torch.as_tensor(weights).detach() for weights in
              (w_out if isinstance(w_out, list | tuple) else [w_out])]
    tokens = torch.as_tensor(unembedding)
    _check(layers, tokens)
    return layers, tokens.detach(), None, False, {"layer": 1 + np.arange(len(layers))}


def _check(layers: list[torch.Tensor], tokens: torch.Tensor) -> None:
    fits = tokens.ndim == 2 and tokens.is_floating_point() and len(tokens) > 1 and layers and all(
        weights.ndim == 2 and len(weights) and weights.is_floating_point() and weights.shape[1] == tokens.shape[1]
        for weights in layers)
    if not fits:
        shapes = ", ".join(str(tuple(weights.shape)) for weights in layers)
        raise ValueError("w_out must be numbers (neurons, width), one matrix a layer, and unembedding (tokens, width) "
                         f"of at least two tokens; got {shapes or 'none'} and {tuple(tokens.shape)}. A torch.nn.Linear "
                         "holds w_out the other way round: pass weight.T.")


def _of_model(looped: LoopedModel, unembedding: Any, fold: bool) -> Given:
    own, folded, centred = looped.unembed, None, False
    if unembedding is not None:
        tokens = torch.as_tensor(unembedding).detach()
    else:
        weight = None if own is None else getattr(own.head, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or weight.shape[1] != looped.width:
            why = "its specification names no final norm and head (unembed)" if own is None else \
                f"its head ({type(own.head).__name__}) is no matrix that takes a state of {looped.width} features"
            raise ValueError(f"logits of {looped.name} are no linear function of its normed state that is known: {why}"
                             ". Give unembedding= (tokens, width), or dataclasses.replace(model, unembed="
                             "dynloop.models.Unembedding(head, norm)).")
        tokens = weight.detach()
    if own is not None and own.norm is not None:
        gain = gain_of(own.norm, looped.width, tokens)
        if gain is None:
            raise ValueError(f"the final norm of {looped.name}, {type(own.norm).__name__}, is no norm whose gain can "
                             "be read off: a change of scale changes what it gives, or it does not divide all "
                             "features by one number. Give w_out= and unembedding= alone.")
        centred = gain[1] and fold
        if fold and unembedding is None:
            folded = gain[0]
    outputs = mlp_outputs(looped)
    _check([output.weight.T for output in outputs], tokens)
    labels = {"model": np.full(len(outputs), looped.name)}
    for name in ("part", "layer", "path", "norm"):
        labels[name] = np.array([getattr(output, name) for output in outputs])
    return outputs, tokens, folded, centred, labels


def _written(output: MlpOutput, fold: bool) -> torch.Tensor:
    """(neurons, width) as it reaches the stream."""
    weights = output.weight.T
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    if not fold or output.gain is None:
        return wide
    if output.centred:
        wide = wide - wide.mean(1, keepdim=True)
    return wide * output.gain.to(wide)
