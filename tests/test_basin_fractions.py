"""Basin fractions: known basins, cycles at every phase, orbits that do not settle, exact intervals."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.stats import beta

from dynloop.maps import LoopMap
from dynloop.maps.basin_fractions import _distance, _gone, basin_fractions
from dynloop.outcome import Outcome

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def uniform(n, *shape, low=0.05, high=0.95, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, size=(n, *shape)))


def logistic_map(r, dtype=torch.float64):
    return LoopMap(lambda x, c: r * x * (1 - x), (1,), dtype=dtype)


def share(found, **wanted):
    return found.shares.select(**wanted)["share"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_basins_of_a_bistable_map_are_the_half_lines(dtype, device):
    begin = uniform(500, 2, low=-1, high=3)
    f = LoopMap(lambda x, c: torch.tanh(2 * x), (2,), dtype=dtype, device=device)
    found = basin_fractions(f, begin)
    assert len(found.attractors) == 4
    here = {tuple(a[0].double().sign().tolist()): i for i, a in enumerate(found.attractors)}
    sides = np.array([here[tuple(x.sign().tolist())] for x in begin])
    np.testing.assert_array_equal(found.measurement["attractor"], sides)
    np.testing.assert_allclose(found.shares["share"][:4], np.sort(np.bincount(sides) / 500)[::-1])
    np.testing.assert_allclose(found.attractors[0].double().abs().cpu(), 0.9575040240772687,
                               atol=1e-9 if dtype == torch.float64 else 0.01)


def test_intervals_are_those_of_clopper_and_pearson():
    f = LoopMap(lambda x, c: torch.tanh(2 * x), (1,))
    found = basin_fractions(f, torch.cat([-torch.ones(7, 1), torch.ones(33, 1)]), confidence_level=0.9)
    assert found.shares["count"].tolist() == [33, 7, 0, 0]
    for k, low, high in zip((33, 7, 0, 0), found.shares["low"], found.shares["high"], strict=True):
        assert low == pytest.approx(beta.ppf(0.05, k, 41 - k) if k else 0, abs=1e-9)
        assert high == pytest.approx(beta.ppf(0.95, k + 1, 40 - k), abs=1e-9)


def test_intervals_cover_the_share_of_a_basin():
    f = LoopMap(lambda x, c: torch.tanh(2 * x), (1,))
    covered = []
    for seed in range(120):
        found = basin_fractions(f, uniform(40, 1, low=-0.3, high=0.7, seed=seed), n_steps=64)
        right = next(i for i, a in enumerate(found.attractors) if a[0, 0] > 0)
        row = found.shares.select(attractor=right)
        covered.append(row["low"][0] <= 0.7 <= row["high"][0])
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize(("r", "period"), [(2.5, 1), (3.2, 2), (3.5, 4), (3.55, 8), (3.83, 3), (3.845, 6)])
def test_orbits_on_one_cycle_are_one_attractor_whatever_their_phase(r, period):
    found = basin_fractions(logistic_map(r), uniform(100, 1), n_steps=2000)
    assert [len(a) for a in found.attractors] == [period]
    assert found.measurement.found.all()
    assert (found.measurement["period"] == period).all()
    cycle = found.attractors[0][:, 0]
    np.testing.assert_allclose(r * cycle * (1 - cycle), cycle.roll(-1), atol=1e-6)
    assert found.shares["kind"][0] == ("cycle" if period > 1 else "fixed point")


def test_cycles_that_differ_are_apart_and_phases_are_aligned_as_a_whole():
    """x -> -x in the plane: each start lies on its own cycle of 2, and shares it with its opposite."""
    f = LoopMap(lambda x, c: -x, (2,))
    begin = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [2, 0]])
    found = basin_fractions(f, begin)
    assert found.measurement["attractor"].tolist() == [0, 0, 1, 1, 2]
    assert found.shares["count"].tolist() == [2, 2, 1, 0, 0]


@pytest.mark.parametrize(("f", "what"), [
    (logistic_map(4.0), "chaos"), (logistic_map(2.999), "slow"),
    (LoopMap(lambda x, c: x + 0.001, (1,)), "drift"),
    (LoopMap(lambda x, c: torch.stack([math.cos(1) * x[:, 0] - math.sin(1) * x[:, 1],
                                       math.sin(1) * x[:, 0] + math.cos(1) * x[:, 1]], 1), (2,)), "rotation"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_what_does_not_settle_is_a_class_of_its_own(f, what):
    found = basin_fractions(f, uniform(50, f.dim, low=0.2, high=0.7))
    assert len(found.attractors) == 0
    assert set(found.measurement.outcomes) == {Outcome.NOT_CONVERGED}
    assert found.shares.to_frame()[["kind", "share"]].values.tolist() == [["unsettled", 1.0], ["not finite", 0.0]]
    assert np.isnan(found.measurement["attractor"]).all()


def test_slow_convergence_settles_when_it_is_given_time():
    begin = uniform(20, 1)
    assert not basin_fractions(logistic_map(2.99), begin).measurement.found.any()
    found = basin_fractions(logistic_map(2.99), begin, n_steps=4000)
    assert found.measurement.found.all()
    assert len(found.attractors) == 1


def test_orbits_that_leave_the_finite_numbers_are_a_class_of_their_own():
    f = LoopMap(lambda x, c: x * x, (1,))
    found = basin_fractions(f, torch.cat([0.5 * torch.ones(3, 1), 2 * torch.ones(2, 1), torch.full((1, 1), math.nan)]))
    assert found.measurement.outcomes.tolist() == [Outcome.FOUND] * 3 + [Outcome.NOT_FINITE] * 3
    assert found.shares["count"].tolist() == [3, 0, 3]
    assert found.shares["kind"].tolist() == ["fixed point", "unsettled", "not finite"]
    gone = basin_fractions(f, 2 * torch.ones(2, 1))
    assert gone.shares["share"].tolist() == [0, 1]


def test_contexts_have_attractors_of_their_own():
    where = torch.tensor([1.0, 5.0], dtype=torch.float64)
    f = LoopMap(lambda x, c: 0.5 * x + where[c][:, None], (3,), n_contexts=2)
    found = basin_fractions(f, uniform(10, 3))
    assert [round(float(a[0, 0]), 6) for a in found.attractors] == [2.0, 10.0]
    assert found.measurement["attractor"].tolist() == [0, 1] * 5
    assert found.shares.labels["context"].tolist() == [0, 0, 0, 1, 1, 1]
    assert (found.shares["n"] == 5).all()
    same = basin_fractions(f, uniform(10, 3), contexts=torch.ones(10, dtype=torch.int64))
    assert same.shares["n"].tolist() == [10, 10, 10]


def test_chunks_change_nothing(monkeypatch):
    begin, f = uniform(60, 2, low=-1, high=3), LoopMap(lambda x, c: torch.tanh(2 * x), (2,))
    whole = basin_fractions(f, begin)
    monkeypatch.setattr(sys.modules[basin_fractions.__module__], "_CHUNK_BYTES", 7 * 49 * 2 * 8)
    parts = basin_fractions(f, begin)
    np.testing.assert_array_equal(whole.measurement["attractor"], parts.measurement["attractor"])
    np.testing.assert_array_equal(whole.shares["share"], parts.shares["share"])


def test_the_longest_period_and_the_tolerance_matter():
    assert not basin_fractions(logistic_map(3.55), uniform(5, 1), max_period=7, n_steps=2000).measurement.found.any()
    close = LoopMap(lambda x, c: x - 0.1 * torch.sin(1e3 * x) / 1e3, (1,))  # fixed points .00628 apart
    begin = uniform(40, 1, low=0.9, high=1.0)
    assert len(basin_fractions(close, begin).attractors) > 5
    assert len(basin_fractions(close, begin, tolerance=0.1).attractors) == 1


@pytest.mark.parametrize(("change", "words"), [
    ({"n_steps": 48}, "at least 49, three of the longest period"), ({"max_period": 0}, "max_period must be a whole"),
    ({"tolerance": 0}, "tolerance must be between 0 and 1"), ({"confidence_level": 1}, "confidence_level must be"),
    ({"contexts": torch.zeros(3, dtype=torch.int64)}, "one context is needed for each|contexts must be 5"),
])
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        basin_fractions(logistic_map(2.5), uniform(5, 1), **change)
    with pytest.raises(ValueError, match=r"starts must hold at least one state; got \(0, 1\)"):
        basin_fractions(logistic_map(2.5), torch.zeros(0, 1))

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_jitters_within_the_radius_is_one_attractor(dtype):
    """A contraction beside eight chaotic numbers, from below the spacing up to the radius: never a second attractor."""
    radius = torch.finfo(dtype).eps ** 0.5
    for size in (1e-3, 0.03, 0.1, 0.3, 1.0, 3.0):
        def f(x, contexts, size=size * radius):
            u = x[:, :8] / size
            return torch.cat([size * (3.99 * u * (1 - u)).clamp(0, 1), 0.5 * x[:, 8:] + 1], 1)

        starts = torch.rand(40, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = basin_fractions(LoopMap(f, (16,), dtype=dtype), (starts * (torch.arange(16) > 7) +
                                starts * (torch.arange(16) < 8) * size * radius).to(dtype), n_steps=200)
        assert len(found.attractors) <= 1
        own = found.measurement["period"][found.measurement.found]
        assert set(own) <= {len(attractor) for attractor in found.attractors}
        assert len(own) == 40 or size > 0.3


@pytest.mark.parametrize(("p", "q", "same"), [(2, 4, True), (2, 3, False), (1, 5, False), (6, 4, True), (7, 4, False)])
def test_cycles_of_unequal_period_are_one_only_if_all_their_states_agree(p, q, same):
    ring = torch.tensor([0.0, 1, 0, 1, 0, 1, 5, 9], dtype=torch.float64)[:, None]
    one, other = ring[:p], ring[1:1 + q]
    steps = np.arange(math.lcm(p, q))
    slow = min(float((one[(steps + s) % p] - other[steps % q]).abs().max()) for s in range(p * q))
    assert _distance(one, other) == _distance(other, one) == slow
    assert (slow == 0) == same


@pytest.mark.parametrize(("dtype", "f"), [(torch.bfloat16, lambda x: 1.05 * x), (torch.bfloat16, lambda x: x + 1 / 16),
                                          (torch.float32, lambda x: x + 1e-6 * (1 - x)),
                                          (torch.float32, lambda x: -x * (1 + 2e-6))])
def test_a_slow_drift_is_no_rest(dtype, f):
    """Steps of a few spacings, always the same way: small returns that do not shrink."""
    starts = torch.linspace(-2, -1, 6, dtype=torch.float64)[:, None] + torch.tensor([0.0, 0.1])
    found = basin_fractions(LoopMap(lambda x, contexts: f(x), (2,), dtype=dtype), starts.to(dtype), n_steps=100)
    assert not found.attractors
    assert set(found.measurement.outcomes) == {Outcome.NOT_CONVERGED}


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_the_way_gone_is_that_of_each_phase(period):
    late = uniform(3, 25, 2)
    slow = [max(float((late[i, t] - late[i, next(u for u in range(24, -1, -1) if (u - t) % period == 0)]).norm())
                for t in range(25)) for i in range(3)]
    np.testing.assert_allclose(_gone(late, period), slow)
