"""What a captured orbit shows and what the block's Jacobian says are one number.

Before rounding takes over, the difference of two orbits of one prompt shrinks by the modulus of the slowest multiplier
that reaches the token: the spectral radius, at the limit, of the own blocks of the token and of those before it (the
Jacobian of a causal loop is block triangular). The orbits are captures of the shipped models in double precision, from
two random starts: the model's own start is one more special point (a run of equal tokens stays equal, and shows none of
the modes that would part them), and in single precision a rate of .25 leaves eleven recurrences.

A token's rate is *measurable before the floor* when

1. `contraction_rate` finds it, with a 95 % interval no wider than 1 % of the rate; and
2. the slowest mode can be told from the others in the n = ln(spacing) / ln(rho) recurrences until the floor:
   * the next modulus in the spectrum of the token and those before it has fallen to 1 % of it,
     (rho_2 / rho)^n <= .01 r. The reach r is the part of the mode's eigenvector at this token, over that at the token
     where it is largest: a mode of another token that hardly reaches this one comes to light later;
   * a conjugate pair turns by at least a half (the two against each other by a whole turn). A pair at -.4047 that turns
     by .033 a recurrence looks like (a + b t) (-.4047)^t, which falls by .41 in every recurrence that there is.

Where modes lie closer than that, the orbit shows them together to its end, and no estimator can know that they are two.
"""

import dataclasses

import numpy as np
import pytest
import torch

from dynloop import Outcome, capture, contraction_rate
from dynloop.maps import LoopMap
from dynloop.maps.fixed_point import find_fixed_points
from dynloop.maps.token_spectrum import token_spectrum
from dynloop.models import nano
from dynloop.nano import load_checkpoint, shipped_prompts

MODELS = ("nano-settles", "nano-random-start")
N_RECURRENCES, N_EIGENVALUES = 64, 6
NARROW, ALONE = 0.01, 0.01


@dataclasses.dataclass
class Rates:
    """Of every prompt and token, (prompts, tokens)."""

    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    radius: np.ndarray  # the largest of the token's own block and of those before it
    alone: np.ndarray  # what is left of the second mode, over the slowest one as it reaches the token, at the floor
    turn: np.ndarray  # by how much the slowest mode has turned away from the real axis by then; infinite for a real one
    found: np.ndarray

    @property
    def narrow(self):
        return self.found & (self.high - self.low <= NARROW * self.rate)

    @property
    def measurable(self):
        return self.narrow & (self.alone <= ALONE) & (self.turn >= np.pi)

    @property
    def error(self):
        return np.abs(self.rate / self.radius - 1)


def rates_and_radii(name, folder, n_prompts, n_tokens, dtype=torch.float64, seed=0):
    model, _ = load_checkpoint(name)
    looped = nano(model.to(dtype), name=name)
    prompts = [looped.encode(prompt)[:n_tokens] for prompt in shipped_prompts()[:n_prompts]]
    store = capture(looped, prompts, out=folder / name, n_recurrences=N_RECURRENCES, layers="state", start="random",
                    n_starts=2, seed=seed, dtype=dtype, batch_size=n_prompts)
    orbits = store.trajectories()
    f = LoopMap.of(looped, torch.tensor(prompts))
    ends = orbits.states[np.flatnonzero(orbits.labels["start"] == 0), -1]
    limit = find_fixed_points(f, ends.unflatten(0, (n_prompts, n_tokens)).double(), tolerance=1e-11)
    assert limit.measurement.found.all()
    spectrum = token_spectrum(f, limit.states[None], n_eigenvalues=N_EIGENVALUES)
    assert spectrum.found.all()
    moduli = np.hypot(spectrum["eigenvalues_real"], spectrum["eigenvalues_imag"])
    moduli = moduli.reshape(n_prompts, n_tokens, N_EIGENVALUES)
    radius = np.maximum.accumulate(moduli[..., 0], axis=1)
    angle = np.arctan2(spectrum["eigenvalues_imag"], spectrum["eigenvalues_real"])[:, 0].reshape(n_prompts, n_tokens)
    slowest = np.array([[row[:t + 1].argmax() for t in range(n_tokens)] for row in moduli[..., 0]])
    angle = np.take_along_axis(np.abs(angle), slowest, axis=1)
    angle = np.where((angle == 0) | (angle == np.pi), np.inf, np.minimum(angle, np.pi - angle))
    second = np.empty_like(radius)
    for t in range(n_tokens):
        until = moduli[:, :t + 1].reshape(n_prompts, -1)
        slower = until < radius[:, t, None] * (1 - 1e-9)  # a conjugate is no second mode
        second[:, t] = np.where(slower, until, 0).max(1)
    rates = contraction_rate(orbits)
    first = rates.labels["start"] == 0
    order = np.lexsort((rates.labels["token"][first], rates.labels["prompt"][first]))

    def of(values):
        return values[first][order].reshape(n_prompts, n_tokens)

    until_floor = np.log(torch.finfo(dtype).eps) / np.log(radius)
    alone = (second / radius) ** until_floor / reach(f, limit.states, slowest)
    return Rates(of(rates["rate"]), of(rates["rate_low"]), of(rates["rate_high"]), radius, alone, angle * until_floor,
                 of(rates.outcomes) == Outcome.FOUND)


def reach(f, limits, sources, n_iterations=60):
    """Part of the slowest mode's eigenvector at each token, over its largest part, (prompts, tokens).

    `sources` (prompts, tokens) is the token whose own block gives the slowest mode of all until this one. The tokens of
    one source are found by power iteration in which those of the next source stay zero.
    """
    runs = [(i, s) for i in range(len(sources)) for s in np.unique(sources[i])]
    which = torch.tensor([i for i, _ in runs])
    kept = torch.tensor(np.stack([sources[i] <= s for i, s in runs]))[..., None]
    tangents = torch.randn(limits[which].shape, generator=torch.Generator().manual_seed(0), dtype=limits.dtype) * kept
    largest = torch.zeros(tangents.shape[:2], dtype=limits.dtype)
    for k in range(n_iterations):
        tangents = f.jvp(limits[which], tangents, which)[1] * kept
        parts = tangents.norm(dim=-1)
        tangents = tangents / parts.amax(1)[:, None, None]
        if k >= 3 * n_iterations // 4:  # a conjugate pair turns in and out of a token
            largest = torch.maximum(largest, parts / parts.amax(1, keepdim=True))
    found = np.zeros(sources.shape)
    for (i, s), values in zip(runs, largest.numpy(), strict=True):
        found[i, sources[i] == s] = values[sources[i] == s]
    return found


def report(name, found):
    n = found.rate.size
    inside = (found.low <= found.radius) & (found.radius <= found.high)
    lines = [f"{name}: {n} tokens, {found.found.sum()} with a rate"]
    for what, chosen in (("measurable", found.measurable), ("narrow interval alone", found.narrow)):
        error = found.error[chosen]
        lines.append(f"  {what}: {len(error)} ({chosen.mean():.0%}); worst error {error.max():.2%}, median "
                     f"{np.median(error):.4%}; off by more than 1 %: {(error > 0.01).sum()}; radius in the interval: "
                     f"{inside[chosen].mean():.0%}")
    return "\n".join(lines)


@pytest.mark.parametrize("name", MODELS)
def test_rates_of_captured_orbits_are_the_radii_of_the_jacobian_at_the_limit(tmp_path, name):
    found = rates_and_radii(name, tmp_path, 2, 12)
    print(report(name, found))
    assert found.measurable.mean() > 0.2
    assert (found.error[found.measurable] <= 0.01).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 100, 200])
@pytest.mark.parametrize("name", MODELS)
def test_of_every_measurable_token_of_many_prompts(tmp_path, name, seed):
    found = rates_and_radii(name, tmp_path, 24, 24, seed=seed)
    print(report(name, found))
    assert found.measurable.mean() > 0.2
    assert (found.error[found.measurable] <= 0.01).all()
