"""The ablation study: its plan, its statistics on tables with known answers, and the smoke tier from end to end."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

HERE = Path(__file__).parents[1] / "reports" / "ablation"
MODULES = ("conditions", "pool", "training", "measuring", "mirrors", "contrasts", "results", "drawings", "pages",
           "records", "study")


@pytest.fixture(scope="module", autouse=True)
def on_the_path():
    """The study's folder on the path, as `python reports/ablation/study.py` puts it, and its modules gone after."""
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def study():
    import study

    return study


# ---- the plan

@pytest.mark.parametrize("tier", ["cpu", "gpu"])
def test_every_combination_is_there_once_and_blocks_are_whole_in_turn(tier):
    from conditions import TIERS, conditions

    cells = conditions(TIERS[tier])
    assert len({c.name for c in cells}) == len(cells) == 54 + 9 + 6
    looped = {(c.block, c.injection, c.norm, c.loop_norm) for c in cells if c.kind == "looped"}
    assert len(looped) == 3 * 3 * 3 * 2
    assert {(c.block, c.norm) for c in cells if c.kind == "feed-forward"} == {
        (b, n) for b in (1, 2, 4) for n in ("pre", "sandwich", "residual")}
    assert [c.block for c in cells[:21]] == [2] * 21


def test_a_control_has_as_many_layers_as_the_loop_realises():
    from conditions import TIERS, conditions
    from mirrors import control_of

    from dynloop.nano import NanoModel

    tier = TIERS["smoke"]
    for condition in conditions(tier):
        if condition.kind == "looped":
            control = NanoModel(control_of(condition).model(tier))
            assert len(control.block) == condition.block * tier.n_recurrences
            assert control.config.norm == condition.norm


def test_five_seeds_are_the_default_and_parts_share_no_model_and_leave_none_out(study):
    from conditions import TIERS, conditions

    _, own = study.chosen(TIERS["cpu"], range(5), None, None)
    assert len(own) == 5 * len(conditions(TIERS["cpu"]))
    parts = [study.chosen(TIERS["cpu"], range(5), None, (i, 4))[1] for i in range(1, 5)]
    assert sorted((model for part in parts for model in part), key=str) == sorted(own, key=str)
    for part in parts:  # a control is trained with the loops that are held against it
        assert {(c.block, s) for c, s in part if c.kind == "looped"} == {(c.block, s) for c, s in part
                                                                       if c.kind == "feed-forward"}


@pytest.mark.parametrize("text", ["", "4-", "a", "1,1", "-3"])
def test_bad_seeds_are_refused(study, text, capsys):
    with pytest.raises(SystemExit):
        study.main(["--tier", "smoke", "--out", "x", "--seeds", text])
    assert "seeds" in capsys.readouterr().err


# ---- contrasts

def planted(effect, rng, *, seeds=5, of_seed=0.3, noise=0.1):
    """A table of models in which injection, linear and additive alike, adds `effect` to the growth."""
    rows = []
    for seed in range(seeds):
        shift = of_seed * rng.normal()
        for block in (1, 2):
            for injection in ("none", "additive", "linear"):
                for norm in ("pre", "sandwich"):
                    for end in (True, False):
                        own = effect * (injection != "none") * (1 + 0.2 * (norm == "pre"))
                        rows.append({"kind": "looped", "block": block, "injection": injection, "norm": norm,
                                     "loop_norm": end, "weights": "trained", "seed": seed,
                                     "growth": shift + own + noise * rng.normal()})
    return pd.DataFrame(rows)


def test_a_planted_main_effect_is_found_with_its_sign_and_size(rng):
    from contrasts import contrast

    found = contrast(planted(-2.0, rng), "any injection - none", "growth")
    assert found["n_cells"] == 8
    assert found["n_seeds"] == 5
    assert found["low"] < -2.2 < found["high"] < -1.5
    assert found["p_value"] < 1e-3
    assert abs(contrast(planted(-2.0, rng), "linear - additive", "growth")["value"]) < 0.3


def test_a_contrast_is_students_t_on_the_seeds_differences(rng):
    from contrasts import contrast

    models = planted(1.0, rng)
    found = contrast(models, "additive - none", "growth")
    by = models.groupby(["seed", "injection"]).growth.mean().unstack()
    gaps = (by["additive"] - by["none"]).to_numpy()
    expected = stats.ttest_1samp(gaps, 0)
    np.testing.assert_allclose(found["per_seed"], gaps, rtol=1e-12)
    assert found["p_value"] == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)


def test_a_cell_in_which_one_seed_has_no_number_is_left_out_for_all_seeds(rng):
    from contrasts import contrast

    models = planted(1.0, rng)
    one = (models.seed == 3) & (models.block == 1) & (models.norm == "pre") & models.loop_norm & \
        (models.injection == "none")
    models.loc[one, "growth"] = np.nan
    found = contrast(models, "linear - none", "growth")
    assert (found["n_cells"], found["n_cells_matched"]) == (7, 8)


def test_a_contrast_within_some_conditions_takes_these_alone(rng):
    from contrasts import contrast

    models = planted(0.0, rng)
    models.loc[models.loop_norm & (models.injection != "none"), "growth"] += 5
    inside = contrast(models, "any injection - none, end norm", "growth")
    outside = contrast(models, "any injection - none, no end norm", "growth")
    assert inside["value"] == pytest.approx(5, abs=0.3)
    assert outside["value"] == pytest.approx(0, abs=0.3)
    assert inside["n_cells"] == outside["n_cells"] == 4


def test_what_cannot_be_asked_has_no_contrast(rng):
    from contrasts import contrast

    models = planted(1.0, rng)
    assert contrast(models, "trained - untrained", "growth") is None
    assert contrast(models[models.seed < 2], "linear - none", "growth") is None


def test_p_values_are_holms_within_the_family():
    from contrasts import adjusted

    found = adjusted([{"p_value": p} for p in (0.01, 0.04, 0.03)])
    assert [one["p_adjusted"] for one in found] == pytest.approx([0.03, 0.06, 0.06])
    assert [one["verdict"] for one in found] == ["differ", "cannot tell", "cannot tell"]


def test_what_would_be_seen_is_the_paired_effect_of_the_statistics(rng):
    from contrasts import between_seeds

    gaps = rng.normal(size=5)
    found = between_seeds(range(5), gaps, np.zeros(5))
    assert found["detectable"] == pytest.approx(1.68 * gaps.std(ddof=1), rel=0.01)  # 1.68 SDs: statistics of pairs


def test_seeds_that_all_differ_by_the_same_have_no_interval():
    from contrasts import between_seeds

    found = between_seeds(range(5), np.ones(5), np.zeros(5))
    assert found["value"] == 1
    assert np.isnan(found["low"])
    assert np.isnan(found["detectable"])
    assert found["notes"]


@pytest.mark.slow
def test_intervals_of_contrasts_cover(rng):
    from contrasts import contrast

    hits = []
    for _ in range(400):
        found = contrast(planted(1.0, rng, noise=0.5), "linear - none", "growth")
        hits.append(found["low"] <= 1.1 <= found["high"])  # half of the cells have 1.2
    assert stats.binomtest(sum(hits), len(hits), 0.95).pvalue > 0.001


# ---- reruns

def run_of(values, first=0):
    from contrasts import between_seeds

    seeds = list(range(first, first + len(values)))
    headline = {"headline": "x", "n_cells": 3, **between_seeds(seeds, np.asarray(values), np.zeros(len(values)))}
    return {"settings": {"width": 1, "n_recurrences": 2, "steps": 3, "long_run": 4, "seeds": seeds},
            "headlines": [headline]}


def test_a_rerun_agrees_where_welchs_interval_of_the_difference_covers_none(rng):
    from contrasts import replicate

    a, b = rng.normal(size=5), rng.normal(size=5) + 0.3
    found = replicate(run_of(a), run_of(b, 5))[0]
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected), rel=1e-9)
    assert found["agrees"]
    assert not replicate(run_of(a), run_of(b + 50, 5))[0]["agrees"]


def test_a_rerun_with_no_spread_agrees_only_with_the_same_number():
    from contrasts import replicate

    assert replicate(run_of(np.ones(5)), run_of(np.ones(5), 5))[0]["agrees"]
    assert not replicate(run_of(np.ones(5)), run_of(2 * np.ones(5), 5))[0]["agrees"]


def test_a_rerun_with_the_same_seeds_or_another_tier_is_refused(rng):
    from contrasts import replicate

    one, other = run_of(rng.normal(size=5)), run_of(rng.normal(size=5), 4)
    with pytest.raises(ValueError, match="both runs have seeds 4"):
        replicate(one, other)
    other["settings"] |= {"seeds": [9], "width": 7}
    with pytest.raises(ValueError, match="differ in width: 1 and 7"):
        replicate(one, other)


@pytest.mark.slow
def test_reruns_of_one_recipe_agree_as_often_as_they_should(rng):
    from contrasts import replicate

    found = [replicate(run_of(rng.normal(size=5)), run_of(rng.normal(size=5), 5))[0] for _ in range(1000)]
    agree, within = (np.mean([one[k] for one in found]) for k in ("agrees", "second_in_first"))
    assert 0.94 < agree < 0.975  # Welch's test errs a little on the safe side with five
    assert 0.85 < within < 0.91  # P(|t_4| < 2.776 / sqrt 2) = .879: the reason why it is not the criterion


def test_shares_on_which_all_prompts_agree_count_trainings():
    from results import share_of

    prompts = pd.DataFrame({"training": np.repeat(np.arange(10), 8), "prompt": np.tile(np.arange(8), 10),
                            "rest": "yes"})
    found = share_of(prompts, "rest", "yes", "training")
    assert (found["value"], found["high"]) == (1, 1)
    assert found["low"] == pytest.approx(0.025 ** (1 / 10), rel=1e-6)  # Clopper and Pearson, 10 of 10


def test_a_share_of_one_odd_training_is_known_no_better_than_one_of_none():
    from results import share_of

    prompts = pd.DataFrame({"training": np.repeat(np.arange(10), 8), "prompt": np.tile(np.arange(8), 10), "rest": "no"})
    none = share_of(prompts, "rest", "yes", "training")
    prompts.loc[3, "rest"] = "yes"
    one = share_of(prompts, "rest", "yes", "training")
    assert one["value"] == 1 / 80
    assert one["high"] == pytest.approx(none["high"], rel=1e-9)
    assert one["low"] > 0


# ---- mirroring

def test_other_orders_of_a_block_are_all_different_and_none_is_its_own():
    from mirrors import orders

    assert orders(1, 0) == []
    assert [order.tolist() for order in orders(2, 0)] == [[1, 0]]
    found = [tuple(order) for order in orders(4, 3)]
    assert len(set(found)) == 3
    assert (0, 1, 2, 3) not in found


def test_a_loop_that_is_the_control_mirrors_it_at_one_as_a_stack():
    import mirrors

    from dynloop.nano import NanoConfig, NanoModel

    settings = {"width": 16, "n_heads": 2, "n_block": 2, "n_recurrences": 2, "injection": "none", "norm": "pre",
                "loop_norm": False}
    loop, control = NanoModel(NanoConfig(**settings)), NanoModel(NanoConfig(**settings, looped=False))
    weights = loop.state_dict()
    control.load_state_dict({name: weights[re.sub(r"^block\.(\d)", lambda m: f"block.{int(m[1]) % 2}", name)]
                             for name in control.state_dict()})
    prompts = np.random.default_rng(0).integers(0, 256, (6, 12)).tolist()
    found = mirrors.scores(mirrors.stack(mirrors.profiles(loop, prompts, 2)), mirrors.profiles(control, prompts, 1), [])
    assert found["states"]["score"] == pytest.approx([1], abs=1e-6)
    assert found["attention"]["score"] == pytest.approx([1], abs=1e-4)


# ---- from end to end

@pytest.fixture(scope="module")
def smoke(study, tmp_path_factory):
    """The smoke tier with three seeds, killed once on its way."""
    out = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "run_all", _in_this_process)
        import training

        patch.setattr(training, "run_all", _killed)
        with pytest.raises(KeyboardInterrupt):
            study.main(["--tier", "smoke", "--out", str(out), "--seeds", "0-2"])
        before = {path: path.stat().st_mtime_ns for path in out.glob("models/*/*/model.json")}
        patch.setattr(training, "run_all", _in_this_process)
        assert study.main(["--tier", "smoke", "--out", str(out), "--seeds", "0-2"]) == 0
    return out, before


def _in_this_process(function, tasks, *, workers, title, unit="model"):
    return {key: function(*arguments) for key, arguments in tasks.items()}


def _killed(function, tasks, *, workers, title, unit="model"):
    for arguments in list(tasks.values())[:5]:
        function(*arguments)
    raise KeyboardInterrupt


@pytest.mark.study
def test_what_was_done_before_a_kill_is_not_done_again(smoke, study):
    out, before = smoke
    assert len(before) == 5
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    measured = {path: path.stat().st_mtime_ns for path in out.glob("me*/*/*.json")}
    with pytest.MonkeyPatch.context() as patch:
        import training

        patch.setattr(training, "run_all", _in_this_process)
        patch.setattr(study, "run_all", _in_this_process)
        study.main(["--tier", "smoke", "--out", str(out), "--seeds", "0-2", "--part", "1/1"])
    assert measured == {path: path.stat().st_mtime_ns for path in out.glob("me*/*/*.json")}


@pytest.mark.study
def test_the_report_is_made_of_numbers_json_alone_and_always_the_same(smoke, tmp_path):
    from pages import report_of

    out, _ = smoke
    numbers = json.loads((out / "results" / "numbers.json").read_text())
    page = report_of(numbers).save(tmp_path / "again", formats=("html", "md", "json"))
    kept = out / "results" / "report"
    assert page.read_bytes() == (kept / "report.html").read_bytes()
    assert (page.parent / "report.md").read_bytes() == (kept / "report.md").read_bytes()


def leaves(value):
    """Every number and text in nested data."""
    if isinstance(value, dict):
        for k, v in value.items():
            yield k
            yield from leaves(v)
    elif isinstance(value, list):
        for v in value:
            yield from leaves(v)
    else:
        yield value


@pytest.mark.study
def test_every_number_on_the_page_stands_in_numbers_json(smoke):
    from dynloop.report.cells import significant

    out, _ = smoke
    numbers = json.loads((out / "results" / "numbers.json").read_text())
    known = set()
    for value in leaves(numbers):
        if isinstance(value, str):
            known |= set(re.findall(r"\d[\d.]*", value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            known |= {significant(s * f * value, d) for f in (1, 100) for d in (2, 3) for s in (1, -1)}
            known |= {f"{value:,}", str(value), f"{100 * value:g}"}
    known.add(significant(100 * (1 - numbers["settings"]["level"])))
    page = (out / "results" / "report" / "report.md").read_text()
    page = re.sub(r"arXiv \d+\.\d+|figures/\S+", "", page)
    found = set(re.findall(r"(?<![\w.-])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", page))
    missing = {number for number in found if number.rstrip(",") not in known
               and number.rstrip(",").lstrip("-") not in known}
    assert not missing


@pytest.mark.study
def test_the_records_hold_every_training_with_its_hash_and_no_weights(smoke):
    out, _ = smoke
    records = [json.loads(line) for line in (out / "results" / "records.jsonl").read_text().splitlines()]
    models = [json.loads(path.read_text()) for path in out.glob("models/*/*/model.json")]
    assert {record["sha256"] for record in records} == {model["sha256"] for model in models}
    assert len(records) == len(models)
    assert all(record["log"] for record in records)


@pytest.mark.study
def test_numbers_say_what_is_in_and_every_outcome(smoke):
    numbers = json.loads((smoke[0] / "results" / "numbers.json").read_text())
    counts = numbers["counts"]
    assert counts["included"] == counts["planned"] == len(numbers["conditions"])
    assert not counts["missing"]
    loops = sum(counts["outcomes"][w]["loop"].get(o, 0) for w in ("trained", "untrained")
                for o in counts["outcomes"][w]["loop"])
    assert loops == counts["loops"]
    assert {h["headline"] for h in numbers["headlines"]} == {"injection on rest", "loop-end norm on growth"}
    for one in numbers["contrasts"]:
        assert one["n_seeds"] == 3
        assert len(one["per_seed"]) == 3


def test_a_study_whose_blocks_are_not_whole_is_refused(study, tmp_path):
    with pytest.raises(ValueError, match="holds no whole block of tier 'smoke'"):
        study.main(["--tier", "smoke", "--out", str(tmp_path), "--seeds", "0-2", "--report-only"])


@pytest.mark.study
def test_two_runs_are_held_against_each_other_by_command(study, smoke, tmp_path, capsys):
    numbers = json.loads((smoke[0] / "results" / "numbers.json").read_text())
    numbers["settings"]["seeds"] = [5, 6, 7]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(numbers))
    assert study.main(["--replicate", str(smoke[0] / "results" / "numbers.json"), str(other)]) == 0
    assert capsys.readouterr().out.count(": agrees") == 2
    numbers["headlines"][0]["per_seed"] = [100.0, 101.0, 102.0]
    other.write_text(json.dumps(numbers))
    assert study.main(["--replicate", str(smoke[0] / "results" / "numbers.json"), str(other)]) == 1
    assert "DOES NOT AGREE" in capsys.readouterr().out
