"""Stages by clustering: planted stages, agreement against scikit-learn's, and a null that holds its level."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from dynloop import Outcome, Trajectories, estimate
from dynloop.stages import stage_clusters, stage_profile
from dynloop.stages.clusters import adjusted_rand


def recording(x):
    """States (prompt, layer, token, recurrence, dim) as orbits."""
    prompt, layer, token = (i.ravel() for i in np.indices(x.shape[:3]))
    return Trajectories(x.reshape(-1, *x.shape[3:]), labels={"prompt": prompt, "layer": layer + 1, "token": token})


def staged(rng, stages, n_recurrences=3, n_prompts=8, spread=0.05):
    """States whose norms are 1, 4, 7, ... by stage of the layer."""
    x = rng.normal(size=(n_prompts, len(stages), 5, n_recurrences, 4))
    size = (1 + 3 * np.asarray(stages, dtype=float))[:, None, None] * \
        np.exp(spread * rng.normal(size=(n_prompts, len(stages), 1, n_recurrences)))
    return recording(x / np.linalg.norm(x, axis=-1, keepdims=True) * size[..., None])


def test_the_adjusted_rand_index_is_that_of_scikit_learn(rng):
    for k in (1, 2, 5):
        one, two = rng.integers(k, size=(2, 20, 12))
        slow = [adjusted_rand_score(a, b) for a, b in zip(one, two, strict=True)]
        np.testing.assert_allclose(adjusted_rand(one, two, k), slow, atol=1e-12)


def test_planted_stages_are_found_and_every_loop_agrees(rng):
    stages = [0, 0, 1, 1, 1, 2, 2, 0]
    found = stage_clusters(staged(rng, stages), quantities=["residual_norm"], n_splits=3)
    assert found.n_clusters == 3
    assert found.stability[3] == pytest.approx(1)
    # numbered in the order of depth: stage 0 lies at layers 1, 2 and 8, on average before the others
    assert (found.sequences == [1, 1, 2, 2, 2, 3, 3, 1]).all()
    np.testing.assert_allclose(found.agreement, 1)
    assert found.mean_agreement == pytest.approx(1)
    assert found.p_value <= 0.01
    assert abs(found.null_mean) < 0.03
    assert found.same_stage == 1
    assert found.same_p_value <= 0.01
    assert found.null_same == pytest.approx((9 + 9 + 4) / 64, abs=0.03)
    np.testing.assert_allclose(found.by_prompt.values, 1)
    assert estimate(found.by_prompt, statistic="mean", resample="prompt").n_units == 8
    assert found.assignments.counts() == {Outcome.FOUND: 8 * 3 * 8}
    assert found.assignments.values[:8].tolist() == found.sequences[0].tolist()
    assert "3 stages" in str(found)


def test_stages_of_states_are_found_by_direction(rng):
    directions = np.eye(6)[[0, 0, 1, 1, 2]]
    x = directions[None, :, None, None] * rng.uniform(1, 9, size=(6, 1, 4, 3, 1)) + \
        0.02 * rng.normal(size=(6, 5, 4, 3, 6))
    found = stage_clusters(recording(x), of="states", n_splits=2)
    assert found.n_clusters == 3
    assert (found.sequences == [1, 1, 2, 2, 3]).all()


def test_two_loops_of_few_layers_are_held_against_every_order(rng):
    found = stage_clusters(staged(rng, [0, 1, 2], n_recurrences=2), quantities=["residual_norm"], n_clusters=3,
                           n_splits=1)
    assert found.smallest_p == 1 / 6
    assert (found.mean_agreement, found.p_value) == (1, 1)  # as many stages as layers: no layers go together
    assert (found.same_stage, found.same_p_value) == (1, 1 / 6)
    assert found.null_same == pytest.approx(1 / 3)
    assert "all 6 orders" in found.note


def test_loops_in_another_order_do_not_agree(rng):
    x = staged(rng, [0, 0, 0, 1, 1, 1], n_recurrences=2).states.numpy().reshape(8, 6, 5, 2, 4).copy()
    x[..., 1, :] = x[:, [0, 3, 1, 4, 2, 5]][..., 1, :]
    found = stage_clusters(recording(x), quantities=["residual_norm"], n_clusters=2, n_splits=1)
    assert found.agreement[0, 1] < 0.2
    assert found.p_value > 0.3
    assert found.same_p_value > 0.3
    assert found.by_prompt["same_stage"].mean() == pytest.approx(4 / 6)


@pytest.mark.parametrize("n", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_loops_without_common_stages_are_called_so_at_the_level(n):
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(n):
        # smooth profiles that every prompt shares, and no two loops
        norms = np.exp(np.cumsum(rng.normal(size=(1, 6, 1, 2)), axis=1)) * np.exp(
            0.1 * rng.normal(size=(4, 6, 1, 2)))
        x = np.ones((4, 6, 1, 2, 1)) * norms[..., None]
        turned = np.stack([x[:, rng.permutation(6), :, r] for r in (0, 1)], axis=3)
        found = stage_clusters(recording(turned), quantities=["residual_norm"], n_clusters=2, candidates=(2,),
                               n_splits=1, n_permutations=200, rng=rng)
        hits += found.p_value <= 0.05
    assert hits <= 0.05 * n + 3 * np.sqrt(0.05 * n)


def test_of_many_loops_some_enter_the_null_and_the_first_and_last_are_among_them(rng):
    found = stage_clusters(staged(rng, [0, 1, 1, 2], n_recurrences=12), quantities=["residual_norm"], n_clusters=3,
                           n_splits=1, n_loops=4, n_permutations=100)
    assert "4 of 12 loops" in found.note
    assert found.agreement.shape == (12, 12)
    assert found.mean_agreement == pytest.approx(found.agreement[np.ix_([0, 1, 4, 11], [0, 1, 4, 11])]
                                                 [np.triu_indices(4, 1)].mean())


def test_a_profile_does_as_well_as_a_recording_and_the_same_rng_gives_the_same_stages(rng):
    orbits = staged(rng, [0, 1, 1, 2])
    one, two = (stage_clusters(source, n_splits=2, n_permutations=100, rng=3)
                for source in (orbits, stage_profile(orbits)))
    assert one.n_clusters == two.n_clusters
    assert one.p_value == two.p_value
    np.testing.assert_array_equal(one.assignments.values, two.assignments.values)


def test_recurrences_that_a_prompt_does_not_finish_are_left_out(rng):
    x = staged(rng, [0, 1, 1, 2], n_recurrences=4).states.numpy().reshape(8, 4, 5, 4, 4).copy()
    x[3, 1, 2, 3] = np.nan
    found = stage_clusters(recording(x), quantities=["residual_norm"], n_clusters=3, n_splits=1)
    assert found.recurrences.tolist() == [1, 2, 3]
    assert found.sequences.shape == (3, 4)
    assert found.assignments.counts() == {Outcome.FOUND: 96, Outcome.NOT_FOUND: 31, Outcome.NOT_FINITE: 1}
    assert np.isnan(found.assignments.values[~found.assignments.found]).all()


def test_bad_input_is_refused_with_what_to_do(rng):
    orbits = staged(rng, [0, 1, 1, 2])
    with pytest.raises(ValueError, match="of must be one of"):
        stage_clusters(orbits, of="attention")
    with pytest.raises(ValueError, match="n_splits"):
        stage_clusters(orbits, n_splits=0)
    with pytest.raises(ValueError, match="n_loops"):
        stage_clusters(orbits, n_loops=1)
    with pytest.raises(ValueError, match="n_permutations"):
        stage_clusters(orbits, n_permutations=5)
    with pytest.raises(ValueError, match="n_clusters must be a whole number"):
        stage_clusters(orbits, n_clusters=1)
    with pytest.raises(ValueError, match="at least 4 prompts"):
        stage_clusters(orbits.select(prompt=[0, 1]))
    with pytest.raises(ValueError, match="k must be smaller"):
        stage_clusters(orbits, n_clusters=60)
    with pytest.raises(KeyError, match="no variable"):
        stage_clusters(orbits, quantities=["kurtosis"])
    with pytest.raises(TypeError, match="Give the recording"):
        stage_clusters(stage_profile(orbits), of="states")
