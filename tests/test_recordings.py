"""Recordings of known systems: what was asked for is what is measured."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dynloop import Trajectories, contraction_rate
from synthetic.recordings import record
from synthetic.system import System

TURN = 2 * math.pi / 7


def rotation(angle, rho=1.0):
    return rho * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def on_circle(rng, n):
    angle = rng.uniform(0, 2 * math.pi, n)
    return 5.0 * np.stack([np.cos(angle), np.sin(angle)], axis=-1) + [40.0, -7.0]


CENTRE = np.array([40.0, -7.0])
CIRCLE = System("circle", 2, on_circle, lambda x, rng: (x - CENTRE) @ rotation(TURN).T + CENTRE,
                exact={"regime": "orbit", "period": 7})
SPIRAL = System("spiral", 2, on_circle, lambda x, rng: (x - CENTRE) @ rotation(1.0, 0.8).T + CENTRE,
                exact={"regime": "converging", "rate": 0.8, "fixed_point": CENTRE})
LOGISTIC = System("logistic", 1, lambda rng, n: rng.uniform(0.1, 0.9, (n, 1)), lambda x, rng: 4 * x * (1 - x),
                  transient=20, exact={"regime": "chaotic", "lyapunov": (math.log(2),)}, float64_only=True)
WALK = System("walk", 3, lambda rng, n: np.zeros((n, 3)), lambda x, rng: x + rng.normal(size=x.shape))


def states(recording):
    return recording.states.double().numpy()


def rms(vectors):
    return math.sqrt((vectors**2).sum(-1).mean())


@pytest.mark.parametrize("dim", [2, 256, 5280])
@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0])
def test_the_amplitude_is_one_and_the_offset_is_as_asked(dim, offset):
    h = states(record(CIRCLE, 4, 70, dim=dim, offset=offset, storage="float64"))
    mean = h.mean(1, keepdims=True)
    assert rms(h - mean) == pytest.approx(1, rel=1e-9)
    np.testing.assert_allclose(np.linalg.norm(mean, axis=-1), offset, rtol=1e-9, atol=1e-9)


def test_the_embedding_keeps_every_distance():
    x, h = CIRCLE.orbits(3, 42, rng=5), states(record(CIRCLE, 3, 42, dim=300, storage="float64", rng=5))

    def apart(y):
        return np.linalg.norm(y[:, :, None] - y[:, None], axis=-1)

    np.testing.assert_allclose(apart(h), apart(x) / 5, atol=1e-12)


def test_an_orbit_that_settles_has_the_amplitude_of_its_start():
    h = states(record(SPIRAL, 5, 128, offset=4.0, storage="float64"))
    assert rms(h[:, 0] - h[:, -1]) == pytest.approx(1, rel=1e-9)
    np.testing.assert_allclose(np.linalg.norm(h[:, -1], axis=-1), 4, rtol=1e-9)
    short = states(record(SPIRAL, 5, 4, offset=4.0, storage="float64"))  # the limit is known, however short the look
    np.testing.assert_allclose(short, h[:, :4], atol=1e-9)


def test_the_amplitude_can_be_chosen_and_given():
    h = states(record(SPIRAL, 5, 64, amplitude="orbit", storage="float64"))
    assert rms(h - h.mean(1, keepdims=True)) == pytest.approx(1, rel=1e-9)
    h = states(record(CIRCLE, 5, 70, amplitude="start", storage="float64"))
    assert rms(h[:, 0] - h[:, -1]) == pytest.approx(1, rel=1e-9)
    h = states(record(CIRCLE, 5, 70, amplitude=2.5, storage="float64"))
    assert rms(h - h.mean(1, keepdims=True)) == pytest.approx(5 / 2.5, rel=1e-9)


@pytest.mark.parametrize("source", [CIRCLE, SPIRAL, WALK])
@pytest.mark.parametrize("noise", [0.001, 0.05, 0.2])
def test_the_measured_noise_is_the_one_asked_for(source, noise):
    clean, noisy = (states(record(source, 20, 64, storage="float64", noise=level)) for level in (0.0, noise))
    difference = noisy - clean
    assert rms(difference) == pytest.approx(noise, rel=0.01)  # relative sd: 1 / sqrt(2 * 20 * 64 * 256) = 0.0012
    per_coordinate = np.sqrt((difference**2).mean((0, 1)))
    assert per_coordinate == pytest.approx(noise / 16, rel=0.15)  # isotropic
    steps = (difference[:, 1:] * difference[:, :-1]).sum(-1)
    assert abs(steps.mean()) < 4 * noise**2 / 16 / math.sqrt(steps.size)  # and independent from step to step


def test_anisotropy_makes_a_few_coordinates_massive_and_leaves_amplitude_and_offset():
    plain, massive = (states(record(CIRCLE, 8, 70, dim=512, storage="float64", **how))
                      for how in ({}, {"anisotropy": 50.0, "n_massive": 4}))
    mean = massive.mean(1, keepdims=True)
    assert rms(massive - mean) == pytest.approx(1, rel=1e-9)
    assert np.linalg.norm(massive.mean((0, 1))) == pytest.approx(3, rel=1e-9)
    for of in (lambda h: np.abs(h.mean((0, 1))), lambda h: h.std((0, 1))):
        assert (of(massive) > 20 * np.median(of(massive))).sum() == 4
        assert (of(plain) < 10 * np.median(of(plain))).all()
    three = states(record(CIRCLE, 8, 70, dim=512, storage="float64", anisotropy=50.0))
    assert (np.abs(three.mean((0, 1))) > 20 * np.median(np.abs(three.mean((0, 1))))).sum() == 3


def test_anisotropy_changes_no_period_and_no_rate():
    h = states(record(CIRCLE, 3, 70, storage="float64", anisotropy=30.0))
    np.testing.assert_allclose(h[:, 7:], h[:, :-7], atol=1e-12)
    m = contraction_rate(record(SPIRAL, 10, 128, anisotropy=30.0))
    np.testing.assert_allclose(m.values, 0.8, rtol=5e-3)


def test_dynamical_noise_kicks_every_step_by_its_level():
    level = 0.03
    wide = record(SPIRAL, 400, 64, dim=32, offset=0.0, storage="float64", dynamical_noise=level)
    h = states(wide)
    frame = np.linalg.svd(h.reshape(-1, 32), full_matrices=False)[2][:2]  # the noise stays within the frame
    assert rms(h - h @ frame.T @ frame) < 1e-9
    x = h @ frame.T  # about the limit: offset 0
    kicks = x[:, 1:] - np.einsum("ij,ntj->nti", best_map(x), x[:, :-1])
    assert rms(kicks) == pytest.approx(level, rel=0.02)
    assert rms(x[:, 40:]) == pytest.approx(level / math.sqrt(1 - 0.8**2), rel=0.05)  # AR(1)


def best_map(x):
    past, future = x[:, :-1].reshape(-1, x.shape[-1]), x[:, 1:].reshape(-1, x.shape[-1])
    return np.linalg.lstsq(past, future, rcond=None)[0].T


@pytest.mark.parametrize("storage", ["float64", "float32", "bfloat16", "float16"])
def test_storage_rounds_what_was_computed_exactly(storage):
    exact = record(CIRCLE, 3, 40, storage="float64")
    stored = record(CIRCLE, 3, 40, storage=storage)
    dtype = getattr(torch, storage)
    assert stored.states.dtype == dtype
    assert torch.equal(stored.states, exact.states.to(dtype))
    assert stored.resolution == torch.finfo(dtype).eps


def test_bfloat16_states_are_off_by_the_known_rounding_error():
    exact, stored = (states(record(CIRCLE, 3, 200, dim=1024, storage=s)) for s in ("float64", "bfloat16"))
    assert rms(stored - exact) / rms(exact) == pytest.approx(1.662e-3, rel=0.03)


@pytest.mark.parametrize("computed_in", ["float32", "bfloat16", "float16"])
def test_what_is_computed_in_a_format_lies_on_its_numbers_however_it_is_stored(computed_in):
    recording = record(SPIRAL, 3, 40, computed_in=computed_in, storage="float64")
    assert torch.equal(recording.states, recording.states.to(getattr(torch, computed_in)).double())
    assert recording.resolution == torch.finfo(getattr(torch, computed_in)).eps


def test_the_coarser_of_two_formats_is_the_resolution():
    assert record(SPIRAL, 2, 8, computed_in="float32", storage="bfloat16").resolution == 2.0**-7
    assert record(SPIRAL, 2, 8, computed_in="bfloat16", storage="float32").resolution == 2.0**-7


def test_computing_in_bfloat16_is_not_storing_in_bfloat16():
    stored = states(record(CIRCLE, 4, 256, storage="bfloat16"))
    computed = states(record(CIRCLE, 4, 256, computed_in="bfloat16"))
    exact = states(record(CIRCLE, 4, 256, storage="float64"))
    np.testing.assert_array_equal(stored[:, 0], computed[:, 0])  # one rounding is one rounding
    off_stored = np.linalg.norm(stored - exact, axis=-1)
    assert off_stored[:, -1].max() < 1.2 * off_stored[:, 0].max()  # stays one rounding error ...
    assert not np.array_equal(stored[:, 1:], computed[:, 1:])
    frame = np.linalg.svd((exact - exact.mean(1, keepdims=True)).reshape(-1, 256), full_matrices=False)[2][:2]
    drift = np.linalg.norm((computed - exact) @ frame.T, axis=-1)
    assert drift[:, 128:].mean() > 3 * drift[:, 0].mean()  # ... or adds up, as a circle forgets nothing


def test_a_loop_in_bfloat16_settles_at_its_floor_and_the_rate_before_it_is_right():
    h = states(record(SPIRAL, 30, 128, computed_in="bfloat16"))
    late = np.linalg.norm(np.diff(h, axis=1), axis=-1)[:, 64:]
    # two independent roundings of a state of norm 3 lie sqrt(2) * 1.66e-3 * 3 apart; frozen coordinates bring it down
    assert late.max() < 2**0.5 * 1.7e-3 * 3
    m = contraction_rate(record(SPIRAL, 30, 128, computed_in="bfloat16"))
    assert m.found.mean() > 0.9
    assert np.nanmedian(m.values) == pytest.approx(0.8, abs=0.02)
    assert np.median(m["regime_length"]) < 40 < np.median(contraction_rate(record(SPIRAL, 30, 128))["regime_length"])


def test_the_wide_loop_without_rounding_is_the_systems_own():
    x = CIRCLE.orbits(3, 60, rng=3)
    fine = record(CIRCLE, 3, 60, rng=3, computed_in="float32", storage="float64")
    exact = record(CIRCLE, 3, 60, rng=3, storage="float64")
    assert states(fine) == pytest.approx(states(exact), abs=3e-5)
    again = record(x, storage="float64", rng=3)  # states given as they are take the same path
    np.testing.assert_array_equal(states(again), states(exact))


def test_a_stochastic_rule_draws_the_same_numbers_with_and_without_rounding():
    exact = states(record(WALK, 3, 60, storage="float64"))
    rounded = states(record(WALK, 3, 60, storage="float64", computed_in="float32"))
    assert rounded == pytest.approx(exact, abs=1e-4)


def test_the_seed_decides_everything():
    how = {"noise": 0.1, "dynamical_noise": 0.1, "anisotropy": 9.0, "computed_in": "bfloat16"}
    one, two, other = (states(record(CIRCLE, 3, 30, rng=rng, **how)) for rng in (4, 4, 5))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    from_generator = record(CIRCLE, 3, 30, rng=np.random.default_rng(4), **how)
    np.testing.assert_array_equal(states(from_generator), one)
    assert "seed" not in from_generator.labels
    generator = np.random.default_rng(4)
    first, second = (states(record(CIRCLE, 3, 30, rng=generator)) for _ in range(2))
    assert not np.array_equal(first, second)


def test_blocks_of_orbits_change_nothing(monkeypatch):
    whole = states(record(CIRCLE, 7, 30, noise=0.1))
    monkeypatch.setattr("synthetic.recordings._BLOCK_BYTES", 1)
    np.testing.assert_array_equal(states(record(CIRCLE, 7, 30, noise=0.1)), whole)


@pytest.mark.parametrize("how", [{"dim": 300}, {"offset": 1.0}, {"anisotropy": 5.0}, {"amplitude": "start"},
                                 {"noise": 0.01}, {"dynamical_noise": 0.01}, {"storage": "float16"},
                                 {"computed_in": "float16"}, {"rng": 1}])
def test_every_option_matters(how):
    plain, changed = record(CIRCLE, 3, 30), record(CIRCLE, 3, 30, **how)
    assert plain.states.shape != changed.states.shape or not np.array_equal(states(plain), states(changed))


def test_n_massive_matters():
    one, five = (states(record(CIRCLE, 3, 30, anisotropy=9.0, n_massive=n)) for n in (1, 5))
    assert not np.array_equal(one, five)


def test_labels_are_what_is_known():
    r = record(CIRCLE, 3, 30, rng=11)
    assert isinstance(r, Trajectories)
    assert list(r.labels) == ["system", "family", "regime", "period", "rate", "orbit", "seed"]
    assert {name: values[1] for name, values in r.labels.items() if name != "rate"} == {
        "system": "circle", "family": "", "regime": "orbit", "period": 7, "orbit": 1, "seed": 11}
    assert np.isnan(r.labels["rate"]).all()
    assert record(SPIRAL, 2, 9).labels["rate"].tolist() == [0.8, 0.8]
    assert record(WALK, 2, 9).labels["regime"].tolist() == ["", ""]
    assert list(record(WALK.orbits(2, 9)).labels) == ["orbit", "seed"]


def test_the_family_is_the_module_that_has_the_system():
    blocks = pytest.importorskip("synthetic.blocks")
    assert record(blocks.SYSTEMS[0], 2, 5).labels["family"].tolist() == ["blocks", "blocks"]


def test_an_orbit_that_diverges_is_cut_and_not_padded():
    runaway = System("runaway", 2, on_circle, lambda x, rng: 1e30 * x, exact={"regime": "diverging"})
    r = record(runaway, 2, 30, storage="float64")  # 1e300 is the tenth
    assert r.lengths.tolist() == [11, 11]
    assert r.diverged.all()
    sudden = System("sudden", 2, on_circle, lambda x, rng: 40 * x, exact={"regime": "diverging"})
    assert (record(sudden, 2, 30, storage="float16", amplitude=5.0).lengths < 6).all()  # what float16 cannot hold


def test_a_float64_only_system_is_refused_elsewhere_unless_asked():
    with pytest.raises(ValueError, match="logistic keeps its answers in float64 only; got computed_in='float32'"):
        record(LOGISTIC, 2, 20, computed_in="float32")
    assert record(LOGISTIC, 2, 20, computed_in="float32", allow_collapse=True).resolution == 2.0**-23
    assert record(LOGISTIC, 2, 20, storage="bfloat16").resolution == 2.0**-7


def test_orbits_at_rest_have_no_amplitude_unless_one_is_given():
    settled = dataclasses.replace(SPIRAL, transient=300)
    with pytest.raises(ValueError, match="must move to have an amplitude"):
        record(settled, 3, 30)
    h = states(record(settled, 3, 30, amplitude=5.0, noise=0.02, storage="float64"))
    assert rms(h - h.mean(1, keepdims=True)) == pytest.approx(0.02 * math.sqrt(29 / 30), rel=0.02)


@pytest.mark.parametrize(("change", "words"), [
    ({"dim": 1}, "dim must be at least the 2 dimensions"),
    ({"dim": 0}, "dim must be a whole number"),
    ({"dim": 64.0}, "dim must be a whole number"),
    ({"offset": -1}, "offset must be a finite number of amplitudes"),
    ({"offset": math.inf}, "offset must be"),
    ({"noise": -0.1}, "noise must be"),
    ({"noise": math.nan}, "noise must be"),
    ({"dynamical_noise": True}, "dynamical_noise must be"),
    ({"anisotropy": 0.5}, "anisotropy must be a finite factor"),
    ({"n_massive": 2}, "changes nothing without anisotropy"),
    ({"n_massive": 0, "anisotropy": 9}, "n_massive must be a whole number"),
    ({"n_massive": 256, "anisotropy": 9}, "must leave some of the 256 dimensions"),
    ({"amplitude": "peak"}, "amplitude must be one of orbit, start or a positive number; got 'peak'"),
    ({"amplitude": 0}, "amplitude must be"),
    ({"amplitude": True}, "amplitude must be"),
    ({"storage": "int8"}, "storage must be one of float64"),
    ({"storage": None}, "storage must be one of float64"),
    ({"computed_in": "float64"}, "computed_in must be one of float32"),
    ({"computed_in": 16}, "computed_in must be one of float32"),
    ({"allow_collapse": 1}, "allow_collapse must be true or false"),
    ({"n_orbits": None}, "n_orbits must be"),
    ({"n_steps": 1}, "n_steps must be"),
])
def test_nonsense_is_refused_with_words(change, words):
    with pytest.raises(ValueError, match=words):
        record(CIRCLE, **{"n_orbits": 3, "n_steps": 20, **change})


@pytest.mark.parametrize(("change", "words"), [
    ({"computed_in": "bfloat16"}, "computed_in acts inside the loop"),
    ({"dynamical_noise": 0.1}, "dynamical_noise acts inside the loop"),
    ({"allow_collapse": True}, "allow_collapse acts inside the loop"),
    ({"n_steps": 19}, "n_steps of given states is their own, 20"),
])
def test_states_have_no_loop_to_act_in(change, words):
    with pytest.raises(ValueError, match=words):
        record(CIRCLE.orbits(3, 20), **change)


@pytest.mark.parametrize("given", [np.zeros((3, 4)), np.zeros((0, 4, 2)), np.array([[["a"]]]), [[1.0]]])
def test_what_are_no_states_is_refused(given):
    with pytest.raises(ValueError, match="source must be a System or numbers of shape"):
        record(given)


def test_orbits_that_do_not_begin_are_refused():
    given = CIRCLE.orbits(3, 20)
    given[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="begin with finite states; 1 of 3"):
        record(given)
