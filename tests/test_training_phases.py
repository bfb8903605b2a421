"""The monitor asks a task's questions, states cluster by entity where they do, and phases are read from its log."""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from dynloop import Outcome
from dynloop.models import nano
from dynloop.monitoring import LoopMonitor, read_log
from dynloop.monitoring.clustering import cosine_clustering
from dynloop.monitoring.task_probe import TaskProbe
from dynloop.monitoring.training_phases import training_phases
from dynloop.nano import NanoConfig, NanoModel, TrainingConfig, make_task, train
from dynloop.nano.answers import right_answers

GRAPH = make_task("knowledge_graph", {"entities": 8, "relations": 3})
CONFIG = NanoConfig(width=16, n_heads=2, n_prelude=0, n_block=1, n_coda=0, n_recurrences=3)
QUIET = {"attention": False, "spectral_radius": False, "n_recurrences": 4}


@pytest.fixture(autouse=True)
def few_threads():
    torch.set_num_threads(1)


# ---- clustering

def slow(states, labels):
    within, between = [], []
    for i in range(len(states)):
        for j in range(i):
            cosine = states[i] @ states[j] / np.linalg.norm(states[i]) / np.linalg.norm(states[j])
            (within if labels[i] == labels[j] else between).append(cosine)
    return np.mean(within) - np.mean(between)


def test_clustering_is_the_mean_over_pairs(rng):
    states, labels = rng.normal(size=(30, 5)) + 1, rng.integers(0, 4, 30)
    found = cosine_clustering(states, labels)
    assert found.value == pytest.approx(slow(states, labels), abs=1e-12)
    assert found.value == pytest.approx(found.within - found.between)
    assert cosine_clustering(7 * states, labels + 3).value == pytest.approx(found.value, abs=1e-12)


def test_many_labels_take_little_memory(rng):
    tracemalloc.start()
    cosine_clustering(rng.normal(size=(1000, 4)), np.arange(1000) % 300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25


def test_planted_clusters_of_known_strength_are_found(rng):
    labels = np.repeat(np.arange(10), 30)
    for strength in (0.5, 2.0):
        own = rng.normal(size=(10, 400)) * strength
        found = cosine_clustering(own[labels] + rng.normal(size=(300, 400)), labels)
        assert found.value == pytest.approx(strength**2 / (1 + strength**2), abs=0.04)
        assert found.p_value == 0.005


def test_without_clusters_the_null_is_passed_as_often_as_it_says():
    found = [cosine_clustering(rng.normal(size=(40, 6)) + 2, rng.integers(0, 5, 40), rng=i)
             for i, rng in enumerate(map(np.random.default_rng, range(400)))]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 4 * values.std() / 20
    passed = sum(one.value > one.null for one in found)
    assert 8 <= passed <= 34  # 5 % of 400, within 3 standard deviations
    assert sum(one.p_value <= 0.05 for one in found) == pytest.approx(passed, abs=3)


def test_labels_that_no_two_states_share_leave_nothing_to_say():
    for labels in (range(5), np.zeros(5)):
        assert np.isnan(cosine_clustering(np.eye(5), labels).value)
    with pytest.raises(ValueError, match="finite numbers of shape"):
        cosine_clustering(np.full((3, 2), np.nan), [0, 0, 1])
    with pytest.raises(ValueError, match="n_shuffles"):
        cosine_clustering(np.eye(3), [0, 0, 1], n_shuffles=0)


# ---- the monitor

def monitor_of(model, **settings):
    return LoopMonitor(model, GRAPH.held_out_windows(n=2, length=GRAPH.length).tolist(), every=2,
                       **{**QUIET, "task": GRAPH, "task_questions": 12, **settings})


def test_the_monitor_logs_accuracy_and_clustering_by_split(tmp_path):
    model = NanoModel(CONFIG, seed=0)
    monitor = monitor_of(model, log=tmp_path)
    record = monitor.step(2)
    probe = TaskProbe(nano(model), GRAPH, n=12, n_recurrences=3, autocast=None)
    for split in GRAPH.splits:
        questions = probe.questions.select(probe.questions.split == split)
        with torch.no_grad():
            right, _ = right_answers(model, questions, [3])
        assert record[f"accuracy_{split}"] == right.mean()
    asked = probe.questions
    with torch.no_grad():
        context = model.embed(torch.from_numpy(asked.text[:, :-1]).long())
        state = model.initial_state(context)
        for _ in range(3):
            state = model.step(state, context)
    at = asked.asked.argmax(1) - 1
    states, entity = state[np.arange(len(at)), at].numpy().astype(float), asked.entity[np.arange(len(at)), at]
    assert record["clustering_3_recurrences"] == pytest.approx(slow(states, entity), abs=1e-6)
    own = asked.split == "harder"
    assert record["clustering_harder"] == pytest.approx(slow(states[own], entity[own]), abs=1e-6)
    seen, rows, places = set(), [], []
    for i, (text, entities) in enumerate(zip(asked.text, asked.entity, strict=True)):
        for place in range(1, at[i]):
            if entities[place] >= 0 and text[:place + 1].tobytes() not in seen:
                seen.add(text[:place + 1].tobytes())
                rows.append(i), places.append(place)
    middle = state[rows, places].numpy().astype(float)
    assert record["clustering_partial_results"] == pytest.approx(slow(middle, asked.entity[rows, places]), abs=1e-6)
    monitor.step(4)
    frame = read_log(tmp_path)
    assert frame.step.tolist() == [2, 4]
    assert frame["accuracy_train"].tolist() == [record["accuracy_train"]] * 2
    run = frame.attrs["runs"][0]
    assert run["task"]["task"] == "knowledge_graph"
    assert run["task"]["recurrences"] == 3
    assert "accuracy_harder" in run["at_start"]


def test_a_training_with_the_task_watched_is_the_same_to_the_last_bit(tmp_path):
    settings = TrainingConfig(steps=4, batch_size=4, length=GRAPH.length - 1, log_every=1, evaluate_every=4)
    train(CONFIG, settings, GRAPH, tmp_path / "a")
    train(CONFIG, settings, GRAPH, tmp_path / "b", monitor=lambda model: monitor_of(model, log=tmp_path / "b").step)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert training_phases(tmp_path / "b").labels["split"].tolist() == list(GRAPH.splits)


def test_what_fails_in_the_task_is_logged_and_the_other_numbers_stay(tmp_path, monkeypatch):
    monitor = monitor_of(NanoModel(CONFIG), log=tmp_path)
    monkeypatch.setattr(TaskProbe, "measure", lambda self: 1 / 0)
    record = monitor.step(2)
    assert record["state_norm"] > 0
    assert "accuracy_train" not in record
    assert "ZeroDivisionError" in read_log(tmp_path).attrs["errors"][0]["error"]


@pytest.mark.parametrize(("settings", "words"), [
    ({"task": "parity"}, "task must be one of dynloop.nano.tasks"), ({"task_questions": 1}, "task_questions must be"),
    ({"task": None, "task_recurrences": 3}, "goes with task="), ({"task_recurrences": 0}, "task_recurrences must be")])
def test_bad_settings_of_the_monitor_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        monitor_of(NanoModel(CONFIG), **settings)


# ---- phases

def log_of(**curves):
    n = len(next(iter(curves.values())))
    return pd.DataFrame({"step": 100 * np.arange(1, n + 1), **{f"accuracy_{k}": v for k, v in curves.items()}})


def test_planted_phases_are_found_in_their_order():
    found = training_phases(log_of(train=[0.2, 0.95, 0.85, 0.96, 1, 1, 1], in_distribution=[0, 0, 0.1, 0.3, 0.9, 1, 1],
                                   new_combinations=[0, 0, 0, 0, 0.1, 0.5, 0.95], harder=[0.1] * 7))
    assert [o.value for o in found.outcomes] == ["found", "found", "not converged", "not found"]
    np.testing.assert_array_equal(found.values, [400, 500, np.nan, np.nan])  # 200 was passed, but not for good
    np.testing.assert_array_equal(found["after"], [300, 400, np.nan, np.nan])
    np.testing.assert_array_equal(found["last"], [1, 1, 0.95, 0.1])
    assert found.settings == {"threshold": 0.9, "stay": 2}


def test_every_log_has_an_outcome():
    assert training_phases(log_of(train=[1.0])).outcomes[0] is Outcome.TOO_SHORT
    assert training_phases(log_of(train=[0.2, np.nan, 1, 1])).outcomes[0] is Outcome.NOT_FINITE
    always = training_phases(log_of(train=[1.0, 1.0, 1.0]))
    assert (always.values[0], np.isnan(always["after"][0])) == (100, True)
    assert training_phases(log_of(train=[0.5, 0.5]), threshold=0.5).values[0] == 100


def test_the_crossing_is_the_definition(rng):
    for _ in range(200):
        accuracy = rng.integers(0, 3, 8) / 2
        found = training_phases(log_of(train=accuracy), threshold=0.5, stay=1)
        good = [s for s in range(8) if (accuracy[s:] >= 0.5).all()]
        assert found.found[0] == bool(good)
        if good:
            assert found.values[0] == 100 * (good[0] + 1)


def test_steps_and_splits_may_come_in_any_order():
    log = log_of(harder=[0.0, 0.1, 0.2, 0.1], train=[0.1, 1.0, 0.95, 1.0])
    due = training_phases(log)
    assert due.labels["split"].tolist() == ["train", "harder"]
    assert due["step"][0] == 200
    found = training_phases(log.iloc[[2, 0, 3, 1]])
    for name in ("step", "after", "last"):
        np.testing.assert_array_equal(found[name], due[name])


def test_several_trainings_are_rows_by_seed():
    logs = {seed: log_of(train=[0.1] * seed + [1.0] * 5, harder=[0.0] * (seed + 5)) for seed in (1, 2, 3)}
    found = training_phases(logs)
    np.testing.assert_array_equal(found.select(split="train").values, [200, 300, 400])
    assert found.select(split="train").labels["seed"].tolist() == [1, 2, 3]


def test_logs_without_accuracies_and_bad_settings_are_refused(tmp_path):
    for call, words in ((lambda: training_phases({}), "no log given"),
                        (lambda: training_phases(log_of(train=[1]), stay=0), "stay must be"),
                        (lambda: training_phases(pd.DataFrame({"step": [1]})), "Give LoopMonitor a task="),
                        (lambda: training_phases(log_of(train=[1]), threshold=0), "threshold must be")):
        with pytest.raises(ValueError, match=words):
            call()
    (tmp_path / "monitor.jsonl").write_text(json.dumps({"kind": "run", "schema": 1}) + "\n")
    with pytest.raises(ValueError, match="needs the columns step and accuracy"):
        training_phases(tmp_path)
