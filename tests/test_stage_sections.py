"""Stages and attention in a report and on the command line: shown where a recording holds them, and only there."""

import numpy as np
import pytest
import torch

from dynloop import Trajectories, cli, distance_to_limit, open_store, save
from dynloop.attention import attention_lag, attention_stabilisation, sink_rate
from dynloop.attention.nulls import uniform_sink_score
from dynloop.recording import attention_of
from dynloop.report import build_report
from dynloop.report.runs import Run
from dynloop.report.sections import attention, stages
from dynloop.stages import layer_cosine, mirroring, profile_by, stage_profile

PROMPTS = ("import os, sys", "def f(x, y=1):", "for i in range:", "return None  # n")
STEPS = 24


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Four short prompts, with attention and the distances of its maps, recorded by the command line."""
    root = tmp_path_factory.mktemp("stages")
    (root / "prompts.txt").write_text("\n".join(PROMPTS))
    assert cli.main(["capture", "nano-settles", "--out", str(root / "s"), "--prompts", str(root / "prompts.txt"),
                     "--recurrences", str(STEPS), "--attention-pairs", "all"]) == 0
    return open_store(root / "s")


def run_of(source, name="mine"):
    found = distance_to_limit(source, metric="relative") if isinstance(source, Trajectories) else \
        distance_to_limit(source.trajectories(), metric="relative")
    return Run(name, [found], {}, resample="prompt", n_resamples=200, source=source)


def orbits_of(x):
    prompt, layer, token = (i.ravel() for i in np.indices(x.shape[:3]))
    return Trajectories(x.reshape(-1, *x.shape[3:]), labels={"prompt": prompt, "layer": layer + 1, "token": token})


@pytest.fixture(scope="module")
def deep():
    """Six prompts, four layers, five tokens, twenty recurrences."""
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(6, 4, 5, 1, 3)) * np.array([1, 4, 3, 0.5])[:, None, None, None]
    return orbits_of(stack + 0.02 * np.arange(20)[:, None] * rng.normal(size=(6, 4, 5, 20, 3)))


def test_the_command_line_records_the_distances_of_attention_maps(store):
    assert store.header["attention"]["pairs"] == "all"
    assert attention_of(store, per="pair").sizes["recurrence"] == STEPS


def test_the_sample_is_the_recording_at_the_recurrences_it_names(deep):
    sample = stages.sampled(run_of(deep))
    assert sample.n_prompts == 6
    assert sample.recurrences[0] == 1
    assert sample.recurrences[-1] == 20
    assert len(sample.recurrences) <= stages.RECURRENCES
    whole, own = stage_profile(deep), sample.profile()
    for recurrence in sample.recurrences:
        one, other = own.select(recurrence=recurrence), whole.select(recurrence=recurrence)
        np.testing.assert_allclose(one["anisotropy"], other["anisotropy"])
        np.testing.assert_array_equal(one.labels["depth"], other.labels["depth"])
    cosines, of_all = sample.cosines(), layer_cosine(deep)
    kept = np.isin(of_all["recurrence"].values, sample.recurrences)
    np.testing.assert_allclose(cosines.values, of_all.values[kept][:, kept])
    np.testing.assert_array_equal(cosines["recurrence"].values, of_all["recurrence"].values[kept])


def test_a_large_recording_is_sampled_down_to_the_budget(monkeypatch, deep):
    monkeypatch.setattr(stages, "_NUMBERS", 1)
    sample = stages.sampled(run_of(deep))
    assert sample.n_prompts == 4
    monkeypatch.setattr(stages, "TOKENS", 2)
    assert len(np.unique(stages.sampled(run_of(deep)).orbits.labels["token"])) == 2


def test_stages_hold_the_numbers_of_the_profile_and_of_mirroring(deep):
    run = run_of(deep)
    section = stages.section([run])
    table, alike = section.tables
    found = profile_by(stage_profile(deep), "layer", variable="anisotropy")
    cells = {(row[1].text, row[2].text): row[4] for row in table.rows}
    for layer in range(1, 5):
        for recurrence in (1, 20):
            own = found.sel(layer=layer, recurrence=recurrence)
            cell = cells[str(layer), str(recurrence)]
            assert (cell.value, cell.low, cell.high) == pytest.approx(
                tuple(float(own[name]) for name in ("mean", "low", "high")))
    first = deep.replace(states=deep.states[:, :1], lengths=None)
    mirrored = mirroring(deep, first, recurrences=[20])
    assert alike.rows[0][3].value == pytest.approx(mirrored["score"][0])
    assert alike.rows[0][5].text == "20"
    assert [drawing.name for drawing in section.drawings] == ["1-stages", "1-stages-cosine"]
    kept = {e.name for e in run.estimates}
    assert "stage_profile.anisotropy" in kept or any("anisotropy" in name for name in kept)


def test_recordings_without_layers_or_prompts_have_no_stages():
    rng = np.random.default_rng(0)
    for labels in ({"prompt": np.arange(8) // 2}, {"prompt": np.arange(8) // 2, "layer": np.ones(8, dtype=int)}):
        assert stages.section([run_of(Trajectories(rng.normal(size=(8, 9, 3)), labels=labels))]) is None
    assert attention.section([run_of(Trajectories(rng.normal(size=(8, 9, 3)),
                                                  labels={"prompt": np.arange(8)}))]) is None


def test_a_recording_that_is_not_whole_is_said_and_not_shown(deep):
    section = stages.section([run_of(deep[:-1])])
    assert "mine: no stages, because" in section.text[0]
    assert not section.tables


def test_a_recording_that_was_saved_without_attention_has_stages_alone(tmp_path, deep):
    saved = save(deep, tmp_path / "s")
    run = run_of(saved)
    assert stages.section([run]).tables[0].rows
    assert attention.section([run]) is None


def test_attention_holds_its_numbers_beside_uniform_attention(store):
    run = run_of(store)
    section = attention.section([run])
    table, settling = section.tables
    score = sink_rate(attention_of(store))
    for row in table.rows:
        part = score.select(layer=row[1].text, recurrence=int(row[2].text))
        assert row[3].value == pytest.approx(part["score"].mean())
        assert row[3].low < row[3].value < row[3].high
        lengths = [len(text) for text in PROMPTS]
        assert row[4].value == pytest.approx(np.mean([uniform_sink_score(n) for n in lengths]))
    settled = attention_stabilisation(attention_of(store, per="pair"))
    for row in settling.rows:
        own = settled.select(layer=row[1].text)
        assert row[2].text == f"{int(own.found.sum())} of {own.n_orbits}"
        if own.found.any():
            assert row[3].value == pytest.approx(own["time"][own.found].mean())
    assert [drawing.name for drawing in section.drawings] == [
        "1-attention", "1-attention-settling", "1-attention-distance"]
    state = attention._state(run, store, np.arange(4), STEPS, settled)
    lag = attention_lag(settled, state)
    assert settling.rows[0][5].value == pytest.approx(np.nanmean(lag.select(layer=settling.rows[0][1].text)["lag"]))


def test_the_page_shows_both_sections(store, tmp_path):
    report = build_report([store], n_resamples=100)
    names = [section.name for section in report.sections]
    assert names.index("figures") < names.index("stages") < names.index("attention") < names.index("calibration")
    page = report.save(tmp_path / "r", formats=["html"]).read_text()
    assert "Stages of inference" in page
    assert "When attention becomes constant" in page
    assert any(e.name.startswith("stage_profile") and e.labels["recurrence"] == STEPS for e in report.estimates)
