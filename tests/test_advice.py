"""Exit rules, solvers and forecasts on orbits whose answer is known in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch

from dynloop import LoopMap, Outcome, Trajectories, capture, convergence_time, measure
from dynloop.advice import (
    exit_rule,
    exit_rules,
    extrapolation_forecast,
    readout_of,
    recurrences_needed,
    solver_cost,
    solver_forecast,
)
from dynloop.maps import find_fixed_points
from dynloop.models import nano

T, D = 128, 16
RNG = np.random.default_rng(0)
LIMIT, A, B = np.linalg.qr(RNG.normal(size=(D, 3)))[0].T  # of length 1, at right angles
t = np.arange(T)[:, None]


def decay(rho, *, limit=100.0):
    return limit * LIMIT + rho**t * A


def rotation(angle, *, rho=1.0, limit=100.0):
    return limit * LIMIT + rho**t * (np.cos(angle * t) * A + np.sin(angle * t) * B)


def drift(speed):
    return 100 * LIMIT + speed * t * A


def one(rule, orbit, **settings):
    found = exit_rule(Trajectories(np.asarray(orbit)[None]), rule=rule, **settings)
    return found.outcomes[0], {name: float(values[0]) for name, values in found.variables.items()}


def softmax(states, labels):
    return states @ torch.eye(D, dtype=states.dtype)


# ------------------------------------------------------------------------------------------------------ rules on states

@pytest.mark.parametrize("rho", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("tau", [1e-3, 1e-4])
def test_of_a_contraction_the_latent_difference_stops_where_the_formula_says(rho, tau):
    outcome, m = one("latent difference", decay(rho), threshold=tau)
    # rho^(t-1) (1 - rho) < 100 tau
    exit_at = max(1, math.floor(1 + math.log(100 * tau / (1 - rho)) / math.log(rho)) + 1)
    assert outcome is Outcome.FOUND
    assert m["recurrences"] == exit_at + 1
    assert m["saved"] == T - exit_at - 1
    assert m["saved_share"] == m["saved"] / T
    assert m["distance"] == pytest.approx((rho**exit_at - rho ** (T - 1)) / 100, rel=1e-6)


@pytest.mark.parametrize("rho", [0.5, 0.8, 0.95])
def test_of_a_contraction_the_acceleration_must_be_small_twice(rho):
    outcome, m = one("acceleration", decay(rho), threshold=1e-5)
    # rho^(t-2) (1 - rho)^2 < 1e-3 at t - 1 and t
    first = max(2, math.floor(2 + math.log(1e-3 / (1 - rho) ** 2) / math.log(rho)) + 1)
    assert outcome is Outcome.FOUND
    assert m["recurrences"] == first + 1 + 1


def test_a_small_step_is_far_from_the_limit_of_a_slow_contraction():
    m = one("latent difference", decay(0.98), threshold=1e-4)[1]
    assert m["distance"] > 40 * 1e-4  # of the fifty steps that are left, the recording has these


@pytest.mark.parametrize(("angle", "rule", "fires"), [
    (0.01, "latent difference", True), (0.01, "cosine", True), (0.01, "acceleration", True),
    (1.0, "latent difference", False), (1.0, "acceleration", False)])
def test_a_rotation_is_stopped_where_its_steps_are_small_and_is_not_at_rest(angle, rule, fires):
    outcome, m = one(rule, rotation(angle, limit=1.0))
    assert outcome is (Outcome.FOUND if fires else Outcome.NOT_FOUND)
    if fires:
        assert m["at_rest"] == 0
        assert m["recurrences"] <= 5
    else:
        assert all(np.isnan(value) for value in m.values())


@pytest.mark.parametrize("rule", ["latent difference", "acceleration", "cosine"])
def test_on_a_cycle_of_two_no_rule_on_states_ever_fires(rule):
    outcome, m = one(rule, LIMIT + (-1.0) ** t * A)
    assert outcome is Outcome.NOT_FOUND
    assert np.isnan(m["recurrences"])


def test_a_rule_on_outputs_may_stop_a_cycle_that_the_readout_does_not_tell_apart():
    orbit = 2 * np.eye(D)[0] + (-1.0) ** t * np.eye(D)[1]
    outcome, m = one("argmax stability", orbit, readout=softmax)
    assert outcome is Outcome.FOUND
    assert m["recurrences"] == 6
    assert m["at_rest"] == 0
    assert m["argmax_changed"] == 0
    swapped = np.where(t % 2, np.eye(D)[0], np.eye(D)[1])
    assert one("entropy difference", swapped, readout=softmax)[0] is Outcome.FOUND  # two outputs of one entropy
    assert one("KL", swapped, readout=softmax)[0] is Outcome.NOT_FOUND
    assert one("argmax stability", swapped, readout=softmax)[0] is Outcome.NOT_FOUND


def test_a_drift_is_stopped_at_once_far_from_where_it_ends():
    outcome, m = one("latent difference", drift(1.0))
    assert outcome is Outcome.FOUND
    assert m["recurrences"] == 2
    assert m["at_rest"] == 0
    assert m["distance"] > 0.7


def bfloat16(orbit, **settings):
    states = torch.as_tensor(np.asarray(orbit)).to(torch.bfloat16)
    return exit_rule(Trajectories(states[None]), **settings)


def test_in_bfloat16_slow_motion_is_rounded_away_and_looks_like_arrival():
    slow = decay(0.99, limit=3.0)
    told = exit_rule(Trajectories(slow[None]), threshold=1e-3)
    fooled = bfloat16(slow, threshold=1e-3)
    assert fooled["at_floor"][0] == 1
    assert told["at_floor"][0] == 0
    assert fooled.values[0] < 0.6 * told.values[0]
    assert fooled["distance"][0] > 0.05


def test_a_threshold_below_the_floor_of_the_format_never_fires_and_says_why():
    noise = np.random.default_rng(1).choice([-1, 0, 1], size=(T, D)) * 2.0**-7
    states = torch.as_tensor(1.5 + 0.3**t + noise).to(torch.bfloat16)  # it goes on to jitter by the last digit
    found = exit_rule(Trajectories(states[None]), threshold=1e-3)
    assert found.outcomes[0] is Outcome.AT_PRECISION_FLOOR
    assert np.isnan(found.values[0])
    assert exit_rule(Trajectories(states[None]), threshold=0.03).found[0]


def test_what_is_not_finite_or_too_short_gets_no_number():
    broken = decay(0.5).copy()
    broken[60:] = np.nan
    for rule, least in (("latent difference", 2), ("acceleration", 4), ("cosine", 2)):
        assert one(rule, broken)[0] is Outcome.NOT_FINITE
        assert one(rule, decay(0.5)[:least - 1])[0] is Outcome.TOO_SHORT
        assert one(rule, decay(0.5)[:least])[0] is Outcome.FOUND
    assert one("argmax stability", decay(0.5)[:5], readout=softmax)[0] is Outcome.TOO_SHORT
    ended = exit_rule(Trajectories(np.stack([decay(0.999)] * 2), lengths=[T, 20]), threshold=1e-9)
    assert [o.value for o in ended.outcomes] == ["not found"] * 2


# ----------------------------------------------------------------------------------------------------- rules on outputs

def naive(rule, orbit, threshold):
    """The exits by the letter of the definitions, one state at a time."""
    def distribution(x):
        p = np.exp(x - x.max())
        p /= p.sum()
        if rule == "min-p KL":
            p = np.where(p < 0.1 * p.max(), 1 / len(p), p)
            p /= p.sum()
        return p

    in_a_row = 0
    for i in range(1, len(orbit)):
        p, q = distribution(orbit[i - 1]), distribution(orbit[i])
        if rule == "argmax stability":
            in_a_row = in_a_row + 1 if p.argmax() == q.argmax() else 0
            fires = in_a_row >= threshold
        elif rule == "entropy difference":
            fires = abs((q * np.log(q)).sum() - (p * np.log(p)).sum()) < threshold
        else:
            fires = (p * np.log(p / q)).sum() < threshold
        if fires:
            last, here = distribution(orbit[-1]), q
            return i + 1, last, here
    return None


@pytest.mark.parametrize(("rule", "threshold"), [("KL", 1e-3), ("min-p KL", 1e-5), ("entropy difference", 1e-3),
                                                 ("argmax stability", 5.0)])
def test_rules_on_outputs_stop_where_their_definitions_say(rule, threshold):
    rng = np.random.default_rng(2)
    orbits = rng.normal(size=(12, 1, D)) + rng.uniform(0.7, 0.97, (12, 1, 1)) ** t * rng.normal(size=(12, 1, D)) * 3
    found = exit_rule(Trajectories(orbits), rule=rule, readout=softmax)
    for o, orbit in enumerate(orbits):
        wanted = naive(rule, orbit, threshold)
        assert found.values[o] == wanted[0]
        if rule == "KL":
            assert found["kl"][o] == pytest.approx((wanted[1] * np.log(wanted[1] / wanted[2])).sum(), rel=1e-6,
                                                   abs=1e-12)
            assert found["argmax_changed"][o] == (wanted[1].argmax() != wanted[2].argmax())


@pytest.mark.filterwarnings("ignore:.* are few for a bootstrap")
def test_the_readout_of_a_model_gives_the_models_own_logits(tmp_path):
    prompts = ["import os", "x = 1"]
    store = capture("nano-settles", prompts, out=tmp_path / "s", n_recurrences=12)
    layer = max(store.labels["layer"])
    table = exit_rules(store, resample="token", readout=readout_of("nano-settles", prompts), select={"layer": layer},
                       rules=["KL", "latent difference"])
    kl = table.measurements["KL"]
    # the same by hand, on the model
    model = nano("nano-settles")
    for number, prompt in enumerate(prompts):
        tokens = torch.tensor([list(prompt.encode())])
        logits = [model.run(tokens, n, None)[0].double().log_softmax(-1).detach() for n in range(1, 13)]
        for token in range(len(prompt)):
            steps = [(p[token].exp() * (p[token] - q[token])).sum().item()
                     for p, q in itertools.pairwise(logits)]
            row = (kl.labels["prompt"] == number) & (kl.labels["token"] == token)
            stopped = next((i + 2 for i, step in enumerate(steps) if step < 1e-3), np.nan)
            np.testing.assert_equal(kl.values[row][0], stopped)
            if stopped == stopped:
                end = (logits[-1][token].exp() * (logits[-1][token] - logits[stopped - 1][token])).sum().item()
                assert kl["kl"][row][0] == pytest.approx(end, abs=1e-5)
    assert {"fired", "saved", "distance", "kl", "argmax_changed"} <= set(table.to_frame())


def test_a_readout_of_part_of_a_prompt_is_refused(tmp_path):
    store = capture("nano-settles", ["import os"], out=tmp_path / "s", n_recurrences=4, tokens=[0, 1])
    with pytest.raises(ValueError, match="needs the states of all its tokens"):
        exit_rules(store, resample="token", readout=readout_of("nano-settles", ["import os"]), select={"layer": 2})
    with pytest.raises(ValueError, match="need the labels prompt and token"):
        exit_rule(Trajectories(np.ones((2, 8, 128))), rule="KL", readout=readout_of("nano-settles", ["import os"]))
    with pytest.raises(ValueError, match="must give logits"):
        exit_rule(Trajectories(decay(0.5)[None]), rule="KL", readout=lambda states, labels: states[0])


# ------------------------------------------------------------------------------------------------------------ the table

def nested(n_prompts=30, n_tokens=8, seed=0):
    rng = np.random.default_rng(seed)
    rate = np.repeat(rng.uniform(0.6, 0.95, n_prompts), n_tokens)[:, None, None]
    orbits = 100 * LIMIT + rate**t * A
    orbits[0] = 100 * LIMIT + (-1.0) ** t * 50 * A  # never stops
    orbits[1, 50:] = np.nan
    return Trajectories(orbits, labels={"prompt": np.repeat(np.arange(n_prompts), n_tokens),
                                        "token": np.tile(np.arange(n_tokens), n_prompts)})


def test_what_never_fired_saves_nothing_and_what_has_no_answer_is_left_out():
    orbits = nested()
    found = exit_rules(orbits, resample="prompt", thresholds={"latent difference": 1e-4}, rules=["latent difference"])
    m, own = found.measurements["latent difference"], found.estimates["latent difference"]
    assert {o.value: n for o, n in m.counts().items()} == {"found": 238, "not found": 1, "not finite": 1}
    assert own["saved"].value == pytest.approx(np.nansum(m["saved"]) / 239)
    assert own["fired"].value == pytest.approx(238 / 239)
    assert own["distance"].value == pytest.approx(np.nanmean(m["distance"]))
    assert own["distance"].n == 238
    assert own["saved"].low < own["saved"].value < own["saved"].high
    assert own["saved"].resample == "prompt"
    # tokens of a prompt share their rate: as if they were independent, the interval would be too short
    tokens = exit_rules(orbits, resample="orbit", thresholds={"latent difference": 1e-4}, rules=["latent difference"])
    narrow = tokens.estimates["latent difference"]["saved"]
    assert narrow.high - narrow.low < 0.6 * (own["saved"].high - own["saved"].low)
    frame = found.to_frame()
    assert frame["found"][0] == 238
    assert frame["saved_low"][0] == own["saved"].low
    assert "saved" in repr(found)


def test_a_rule_that_never_fires_at_all_has_savings_of_nothing_and_no_costs():
    cycle = np.repeat((LIMIT + (-1.0) ** t * A)[None], 30, axis=0)
    found = exit_rules(Trajectories(cycle, labels={"prompt": np.arange(30)}), resample="prompt")
    for own in found.estimates.values():
        assert set(own) == {"fired", "saved", "saved_share"}
        assert own["saved"].value == 0 == own["fired"].value
    broken = Trajectories(np.full((30, 8, 2), np.nan), labels={"prompt": np.arange(30)})
    assert exit_rules(broken, resample="prompt").estimates["cosine"] == {}


def test_a_store_and_trajectories_give_the_same_and_settings_are_refused(tmp_path):
    store = capture("nano-settles", ["import os"], out=tmp_path / "s", n_recurrences=16)
    orbits = next(iter(store.stream()))
    assert np.array_equal(measure(store, [exit_rule])[0].values, exit_rule(orbits).values, equal_nan=True)
    for settings, words in (({"rules": ["KL"]}, "look at outputs: give readout="), ({"rules": "cosine"}, "a list of"),
                            ({"thresholds": {"KL": 1.0}}, "not among the rules")):
        with pytest.raises(ValueError, match=words):
            exit_rules(orbits, resample="token", **settings)
    for settings, words in (({"rule": "hope"}, "rule must be one of"), ({"rule": "KL"}, "give readout="),
                            ({"threshold": 0}, "threshold must be"), ({"first_recurrence": -1}, "first_recurrence")):
        with pytest.raises(ValueError, match=words):
            exit_rule(orbits, **settings)


# ------------------------------------------------------------------------------------------------------- what is needed

@pytest.mark.parametrize("rho", [0.5, 0.8])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
def test_what_is_needed_follows_from_the_rate(rho, tolerance):
    found = recurrences_needed(Trajectories(decay(rho)[None]), tolerance=tolerance, budget=32)
    at = max(0, math.ceil(math.log(100 * tolerance) / math.log(rho)))
    assert found.values[0] == at + 1
    assert found["saved"][0] == 31 - at
    from_start = recurrences_needed(Trajectories(decay(rho)[None]), tolerance=tolerance, first_recurrence=0)
    assert from_start.values[0] == at
    assert from_start.settings["budget"] == T - 1


def test_what_does_not_converge_needs_no_number():
    orbits = Trajectories(np.stack([decay(0.5), rotation(1.0, limit=1.0), drift(1.0)]))
    found = recurrences_needed(orbits)
    assert list(found.outcomes) == list(convergence_time(orbits, tolerance=1e-2, relative_to="limit").outcomes)
    assert np.isfinite(found.values).tolist() == [True, False, False]
    for settings, words in (({"budget": 0}, "budget must be"), ({"first_recurrence": -1}, "first_recurrence must be")):
        with pytest.raises(ValueError, match=words):
            recurrences_needed(orbits, **settings)


def test_an_oracle_is_never_later_than_it_must_be():
    orbits = Trajectories(np.stack([decay(r) for r in (0.5, 0.7, 0.9)]))
    needed = recurrences_needed(orbits, tolerance=1e-3)
    rule = exit_rule(orbits, threshold=1e-4)
    early = rule.values < needed.values
    assert (rule["distance"][early] > 1e-3).all()
    assert (rule["distance"][~early] <= 1e-3).all()


# -------------------------------------------------------------------------------------------------------------- solvers

def linear(matrix, b):
    matrix, b = torch.as_tensor(matrix), torch.as_tensor(b)
    return LoopMap(lambda x, contexts: x @ matrix.T + b, (len(b),))


def test_the_cost_of_solvers_is_what_the_search_measures():
    rng = np.random.default_rng(3)
    q = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    loop = linear(q @ np.diag(np.linspace(0.1, 0.95, 8)) @ q.T, rng.normal(size=8))
    starts = torch.as_tensor(rng.normal(size=(3, 8)))
    found = solver_cost(loop, starts)
    for method in ("iteration", "anderson", "newton_krylov"):
        direct = find_fixed_points(loop, starts, method=method).measurement
        assert np.array_equal(found[method], direct["evaluations"])
    assert found.found.all()
    assert (found["anderson_same"] == 1).all()
    assert (found["saved_share"] > 0.5).all()


def test_a_solver_that_ends_elsewhere_than_the_loop_saves_nothing():
    loop = LoopMap(lambda x, contexts: torch.tanh(1.1 * x), (1,))
    found = solver_cost(loop, torch.tensor([[1e-3], [1.0], [1.1]], dtype=torch.float64), methods=["newton_krylov"])
    assert found["newton_krylov_same"].tolist() == [0, 1, 1]  # Newton falls to the unstable point beside it
    assert np.isnan(found["saved_share"][0])
    assert (found["saved_share"][1:] > 0).all()


def test_a_loop_that_does_not_settle_has_nothing_to_accelerate():
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    found = solver_cost(linear(turn, np.ones(2)), torch.zeros(1, 2, dtype=torch.float64), max_evaluations=200)
    assert found.outcomes[0] is Outcome.NOT_CONVERGED
    assert np.isnan(found["iteration"][0])
    assert found["anderson"][0] < 20
    assert np.isnan(found["saved_share"][0])
    with pytest.raises(ValueError, match="methods must be some of"):
        solver_cost(linear(turn, np.ones(2)), torch.zeros(1, 2, dtype=torch.float64), methods=["hope"])


@pytest.mark.parametrize("n_modes", [1, 3, 5])
def test_the_forecast_of_a_solver_agrees_with_the_solver_on_linear_maps(n_modes):
    rng = np.random.default_rng(n_modes)
    q = np.linalg.qr(rng.normal(size=(D, D)))[0]
    rates = np.zeros(D)
    rates[:n_modes] = np.linspace(0.9, 0.5, n_modes)
    matrix, b = q @ np.diag(rates) @ q.T, rng.normal(size=D)
    orbit = [np.zeros(D)]
    for _ in range(T):
        orbit.append(matrix @ orbit[-1] + b)
    orbits = Trajectories(np.array(orbit)[None])
    tolerance = 1e-6
    forecast = solver_forecast(orbits, tolerance=tolerance)
    absolute = tolerance * np.linalg.norm(orbit[-1])
    starts = torch.cat([torch.zeros(1, D), torch.randn(6, D, generator=torch.Generator().manual_seed(0))]).double()
    found = solver_cost(linear(matrix, b), starts, tolerance=absolute)  # one of them pays for the certificate
    measured = {name: float(np.median(values)) for name, values in found.variables.items()}
    assert forecast["anderson"][0] == measured["anderson"]
    assert forecast["newton"][0] <= measured["newton_krylov"] <= 2.2 * forecast["newton"][0]
    assert forecast["iteration"][0] == pytest.approx(measured["iteration"], rel=0.06)
    assert forecast["iteration_counted"][0] == 1
    # the loop's own evaluations beyond the recording follow from its rate
    short = solver_forecast(orbits.replace(states=orbits.states[:, :30]), tolerance=tolerance)
    assert short["iteration_counted"][0] == 0
    assert short["iteration"][0] == pytest.approx(forecast["iteration"][0], rel=0.1)
    assert short["anderson"][0] == forecast["anderson"][0]


def test_of_a_rotation_or_cycle_the_forecast_is_its_centre_and_of_a_drift_there_is_none():
    orbits = Trajectories(np.stack([rotation(1.0), LIMIT + (-1.0) ** t * A, drift(1.0), drift(1.0)]))
    found = solver_forecast(orbits)
    assert found["anderson"][:2].tolist() == [4, 3]
    assert np.isnan(found["iteration"][:2]).all()
    assert found.outcomes[2] is Outcome.NOT_CONVERGED
    assert np.isnan(found["anderson"][2])


def test_a_forecast_of_a_solver_does_not_read_more_than_rounding_leaves():
    states = Trajectories(torch.as_tensor(decay(0.9, limit=1.0)).to(torch.bfloat16)[None])
    assert solver_forecast(states, tolerance=1e-4).outcomes[0] in (Outcome.AT_PRECISION_FLOOR, Outcome.NOT_CONVERGED)
    assert solver_forecast(Trajectories(decay(0.9)[None, :3])).outcomes[0] is Outcome.TOO_SHORT
    broken = decay(0.9).copy()
    broken[9] = np.inf
    assert solver_forecast(Trajectories(broken[None])).outcomes[0] is Outcome.NOT_FINITE
    for settings, words in (({"tolerance": 0}, "tolerance must be"), ({"max_vectors": 1}, "max_vectors must be")):
        with pytest.raises(ValueError, match=words):
            solver_forecast(states, **settings)


# ------------------------------------------------------------------------------------------------------------ forecasts

@pytest.mark.parametrize("orbit", [decay(0.97), rotation(0.7), rotation(0.3, rho=0.98), LIMIT + (-1.0) ** t * A,
                                   drift(0.5), 5 * LIMIT + 0.97**t * A + 0.6**t * B],
                         ids=["decay", "rotation", "spiral", "cycle", "drift", "two modes"])
def test_a_motion_of_few_modes_is_forecast_exactly(orbit):
    found = extrapolation_forecast(Trajectories(orbit[None]))
    assert found.found[0]
    assert found.values[0] < 1e-5
    assert found["good"][0] == 1
    naive = np.linalg.norm(orbit[15] - orbit[-1]) / np.linalg.norm(orbit[-1])
    assert found["naive_error"][0] == pytest.approx(naive)


@pytest.mark.parametrize("method", ["aitken", "rre"])
def test_other_methods_forecast_one_decaying_mode_exactly(method):
    found = extrapolation_forecast(Trajectories(decay(0.9)[None]), method=method)
    assert found.found[0]
    assert found.values[0] < 2e-6


@pytest.mark.parametrize("orbit", [LIMIT + (-1.0) ** t * A, rotation(0.7), drift(0.5), LIMIT + 1.2**t * A],
                         ids=["cycle", "rotation", "drift", "growth"])
def test_a_forecast_of_the_limit_is_not_trusted_where_the_orbit_has_none(orbit):
    found = extrapolation_forecast(Trajectories(orbit[None]), method="rre")
    assert found.outcomes[0] is Outcome.NOT_FOUND
    assert found["untrusted_error"][0] > 0.009  # the centre is one from the orbit, whose states are 100 long


def test_a_forecast_of_the_limit_is_trusted_where_several_modes_decay():
    rng = np.random.default_rng(9)
    orbits = 3 * LIMIT + rng.uniform(0, 0.97, (100, 1, D)) ** t * rng.normal(size=(100, 1, D))
    found = extrapolation_forecast(Trajectories(orbits), method="rre")
    assert found.found.mean() > 0.3
    assert np.median(found["gain"][found.found]) > 3


def chaos(kind, n=60):
    rng = np.random.default_rng(8)
    if kind == "tent maps, coupled":
        x, weights = rng.uniform(0.1, 0.9, (n, D)), None
    elif kind == "logistic":
        x, weights = rng.uniform(0.1, 0.9, (n, 1)), None
    else:
        x, weights = rng.normal(size=(n, 64)), 3 * rng.normal(size=(64, 64)) / 8
    orbit = []
    for _ in range(T + 50):
        orbit.append(x)
        if weights is not None:
            x = np.tanh(x @ weights)
        elif x.shape[1] == 1:
            x = 3.99 * x * (1 - x)
        else:
            y = 1.99 * np.minimum(x, 1 - x)
            x = 0.8 * y + 0.1 * (np.roll(y, 1, -1) + np.roll(y, -1, -1))
    return Trajectories(np.stack(orbit[50:], 1))


@pytest.mark.parametrize("method", ["dmd", "aitken", "rre"])
@pytest.mark.parametrize("kind", ["logistic", "tent maps, coupled", "random network"])
def test_chaos_earns_no_trust(kind, method):
    assert extrapolation_forecast(chaos(kind), method=method).found.mean() < 0.1


@pytest.mark.parametrize("method", ["dmd", "aitken"])
def test_where_the_last_known_state_is_the_target_nothing_is_gained(method):
    cycle = LIMIT + (-1.0) ** t * A
    found = extrapolation_forecast(Trajectories(cycle[None]), method=method)  # 15 and 127 are odd
    assert found["naive_error"][0] == 0
    assert 0 <= found["gain"][0] <= 1


def test_what_lies_outside_of_the_known_states_counts_as_error():
    orbit = decay(0.9).copy()
    orbit[60:] += 7 * np.linalg.qr(np.stack([LIMIT, A, np.eye(D)[0]]).T)[0][:, 2]
    found = extrapolation_forecast(Trajectories(orbit[None]))
    assert found.found[0]
    assert found.values[0] == pytest.approx(7 / np.linalg.norm(orbit[-1]), rel=1e-6)


@pytest.mark.parametrize("rule", ["latent difference", "acceleration"])
def test_a_state_that_is_nothing_and_stays_so_is_at_rest(rule):
    found = exit_rule(Trajectories(np.zeros((1, T, D))), rule=rule)
    assert found.found[0]
    assert found["distance"][0] == 0


@pytest.mark.parametrize("method", ["dmd", "aitken", "rre"])
def test_noise_earns_no_trust(method):
    rng = np.random.default_rng(5)
    orbits = Trajectories(LIMIT + 0.1 * rng.normal(size=(60, T, D)))
    found = extrapolation_forecast(orbits, method=method)
    assert found.found.mean() < 0.1
    assert np.isfinite(found["untrusted_error"]).sum() + found.found.sum() == 60


def test_trust_is_right_more_often_than_not_where_modes_are_many():
    rng = np.random.default_rng(6)
    rates = rng.uniform(0, 0.97, (200, 1, D))
    orbits = 3 * LIMIT + rates**t * rng.normal(size=(200, 1, D)) + 1e-4 * rng.normal(size=(200, T, D))
    found = extrapolation_forecast(Trajectories(orbits))
    assert found.found.sum() > 100
    assert (found["gain"][found.found] > 1).mean() > 0.95
    assert np.median(found["gain"][found.found]) > 3
    # what was near in the near future and is far from sure at the target
    far = extrapolation_forecast(Trajectories(3 * LIMIT + np.log1p(t) * A + 1e-3 * rng.normal(size=(20, T, D))))
    assert far.found.mean() < 0.3


def test_what_has_arrived_is_left_alone_and_what_is_not_there_gets_no_error():
    arrived = extrapolation_forecast(Trajectories(torch.as_tensor(decay(0.2)).to(torch.bfloat16)[None]))
    assert arrived.outcomes[0] is Outcome.AT_PRECISION_FLOOR
    assert np.isnan(arrived.values[0])
    assert arrived["naive_error"][0] < 0.01
    assert extrapolation_forecast(Trajectories(decay(0.9)[None, :16])).outcomes[0] is Outcome.TOO_SHORT
    assert extrapolation_forecast(Trajectories(decay(0.9)[None, :99]), target=127).outcomes[0] is Outcome.TOO_SHORT
    broken = decay(0.9).copy()
    broken[99] = np.nan
    assert extrapolation_forecast(Trajectories(broken[None])).outcomes[0] is Outcome.NOT_FINITE
    growing = np.ldexp(1.0, np.minimum(8 * t, 400)) * A + LIMIT
    assert not extrapolation_forecast(Trajectories(growing[None])).values[0] < 1


@pytest.mark.parametrize(("settings", "words"), [
    ({"n_first": 7}, "n_first must be"), ({"target": 3}, "target must be"), ({"method": "hope"}, "method must be"),
    ({"max_rank": 0}, "max_rank must be"), ({"trust": 2}, "trust must be"), ({"tolerance": 0}, "tolerance must be")])
def test_a_bad_setting_of_a_forecast_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        extrapolation_forecast(Trajectories(decay(0.9)[None]), **settings)


@pytest.mark.parametrize("function", [exit_rule, recurrences_needed, solver_forecast, extrapolation_forecast])
def test_orbits_do_not_depend_on_those_beside_them_or_on_the_axes(function):
    rng = np.random.default_rng(7)
    states = 3 + rng.uniform(0.3, 0.98, (6, 1, D)) ** t * rng.normal(size=(6, 1, D))
    whole = function(Trajectories(states))
    turned = function(Trajectories(states @ np.linalg.qr(rng.normal(size=(D, D)))[0]))
    for o in range(6):
        alone = function(Trajectories(states[o:o + 1]))
        for name, values in whole.variables.items():
            np.testing.assert_allclose(alone[name][0], values[o], rtol=1e-6, atol=1e-9)
    assert list(turned.outcomes) == list(whole.outcomes)
    np.testing.assert_allclose(turned.values, whole.values, rtol=1e-3, atol=1e-6)
