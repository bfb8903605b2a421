"""What is no map, no tensor, no state or no one map is refused in words, by every analysis of a rule."""

import itertools

import numpy as np
import pytest
import torch

from dynloop.maps import (
    LoopMap,
    attention_stability,
    basin_fractions,
    cycle_multipliers,
    intervene,
    jacobian_spectrum,
    lyapunov_spectrum,
    recovery,
    token_spectrum,
    trajectory,
    two_orbit_contraction,
)

ONES = torch.ones(3, 2, dtype=torch.float64)
ASK = {"basin_fractions": lambda f, x=ONES: basin_fractions(f, x),
       "cycle_multipliers": lambda f, x=ONES: cycle_multipliers(f, x[None]),
       "cycle_multipliers of layers": lambda f, x=ONES: cycle_multipliers([f, f], torch.stack([x, x])),
       "intervene": lambda f, x=ONES: intervene(f, x, 3, at=1, state=ONES),
       "jacobian_spectrum": lambda f, x=ONES: jacobian_spectrum(f, x),
       "recovery": lambda f, x=ONES: recovery(f, x, at=1),
       "token_spectrum": lambda f, x=ONES: token_spectrum(f, x),
       "trajectory": lambda f, x=ONES: trajectory(f, x, 3),
       "two_orbit_contraction": lambda f, x=ONES: two_orbit_contraction(f, torch.stack([x, 2 * x]))}
ONE_MAP = [name for name in ASK if name not in ("intervene", "recovery", "token_spectrum", "trajectory")]
TAKES_TENSORS = {"intervene": ASK["intervene"], "jacobian_spectrum": ASK["jacobian_spectrum"],
                 "recovery": ASK["recovery"], "trajectory": ASK["trajectory"],
                 "cycle_multipliers": cycle_multipliers, "call": lambda f, x: f(x),
                 "jacobian": lambda f, x: f.jacobian(x),
                 "jvp": lambda f, x: f.jvp(ONES, x), "jvps": lambda f, x: f.jvps(ONES, x),
                 "vjp": lambda f, x: f.vjp(ONES, x), "vjps": lambda f, x: f.vjps(ONES, x),
                 "state of intervene": lambda f, x: intervene(f, ONES, 3, at=1, state=x),
                 "attention_stability": lambda f, x: attention_stability(x, ONES, ONES)}


def halves():
    return LoopMap(lambda x, contexts: 0.5 * x, (2,))


@pytest.mark.parametrize("what", [lambda x, contexts: x, [1.0], np.zeros(2), torch.nn.Linear(2, 2)],
                         ids=["function", "list", "array", "module"])
@pytest.mark.parametrize("name", ASK)
def test_what_is_no_map_is_refused_with_what_to_do(name, what):
    with pytest.raises(TypeError, match=r"must be a LoopMap; got .*\. Wrap a function .* LoopMap\(function, state_s"):
        ASK[name](what)


@pytest.mark.parametrize("what", [[[1.0, 2.0]], np.ones((3, 2))], ids=["list", "array"])
@pytest.mark.parametrize("name", TAKES_TENSORS)
def test_what_is_no_tensor_is_refused_with_what_to_do(name, what):
    with pytest.raises(TypeError, match=r"(\w+) must be a torch tensor; got .*\. Pass torch.as_tensor\(\1\)"):
        TAKES_TENSORS[name](halves(), what)


@pytest.mark.parametrize("name", [*ASK, "lyapunov_spectrum"])
def test_no_start_at_all_is_refused(name):
    ask = {**ASK, "lyapunov_spectrum": lyapunov_spectrum}[name]
    f = halves() if name != "token_spectrum" else LoopMap(lambda x, contexts: 0.5 * x, (2, 2), causal=True)
    none = torch.zeros(0, *f.state_shape)
    with pytest.raises(ValueError, match=r"at least (one|1)"):
        ask(f, none if name != "token_spectrum" else none[None])


@pytest.mark.parametrize("name", ONE_MAP)
def test_a_rule_that_answers_differently_when_asked_again_is_refused(name):
    rng, calls = np.random.default_rng(0), itertools.count()
    for noisy in (lambda x, contexts: 0.5 * x + 1e-6 * torch.from_numpy(rng.normal(size=x.shape)),
                  lambda x, contexts: x / (next(calls) + 2)):
        with pytest.raises(ValueError, match="map answers differently when it is asked twice with the same state"):
            ASK[name](LoopMap(noisy, (2,)))


def test_own_blocks_of_a_random_rule_are_refused():
    rng = np.random.default_rng(0)
    noisy = LoopMap(lambda x, contexts: x * rng.normal(), (2, 2), causal=True)
    with pytest.raises(ValueError, match="asked twice"):
        token_spectrum(noisy, torch.ones(1, 1, 2, 2))


def test_random_sequences_of_maps_have_orbits_and_exponents():
    rng = np.random.default_rng(0)
    noisy = LoopMap(lambda x, contexts: x * rng.uniform(0.5, 0.9), (2,))
    assert lyapunov_spectrum(noisy, ONES).measurement.found.all()
    assert trajectory(noisy, ONES, 4).n_orbits == 3


def test_a_map_is_asked_twice_once():
    calls = []

    def step(x, contexts):
        calls.append(len(x))
        return 0.5 * x

    f = LoopMap(step, (2,))
    basin_fractions(f, ONES)
    assert calls[:3] == [1, 1, 3]
    calls.clear()
    basin_fractions(f, ONES)
    assert 1 not in calls


def test_a_start_that_is_not_finite_does_not_make_a_map_random():
    away = torch.cat([torch.full((1, 2), torch.nan), ONES])
    assert basin_fractions(halves(), away).measurement.found.tolist() == [False, True, True, True]
