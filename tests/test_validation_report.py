"""The validation study: its numbers, its pages, and the toy of tokens that start an orbit or inherit it."""

import importlib
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dynloop.maps import LoopMap, trajectory
from dynloop.maps.token_spectrum import token_spectrum
from synthetic.token_sources import source_block

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "reports" / "validation" / "results"
NAMES = re.compile(r"float\d+|Algorithm \d|95 %|r = [\d.]+|period 2|-> r x \(1 - x\)")  # digits that are no results


@pytest.fixture(scope="module")
def study():
    before = list(sys.path)
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("reports.validation.study")
    sys.path[:] = before


@pytest.fixture(scope="module")
def smoke(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    study.main(["--tier", "smoke", "--out", str(folder)])
    return folder


def numbers_of(study, folder):
    return study.Numbers.read(folder / "numbers.json")


# ---- the study ------------------------------------------------------------------------------------------------------

@pytest.mark.study
def test_one_command_computes_numbers_and_pages(smoke):
    found = json.loads((smoke / "numbers.json").read_text())
    assert found["schema"] == "dynloop numbers"
    assert found["schema_version"] == "1.0"
    assert {key[0] for key in found["numbers"]} == set("abcd")
    for key, e in found["numbers"].items():
        assert e["n"] >= 0, key
        assert e["unit"] is not None, key
        assert e["method"], key
        if e["low"] is not None and e["value"] is not None:
            assert e["low"] <= e["value"] <= e["high"], key
        else:
            assert e["method"] == "no interval" or e["n"] == 0 or e["value"] is None, key
    assert {"report.html", "report.md"} <= {file.name for file in (smoke / "report").iterdir()}


@pytest.mark.study
def test_what_is_known_exactly_is_found_by_the_smoke_tier(study, smoke):
    numbers = numbers_of(study, smoke)
    for key in ("a.limit_regime.regime.exact.right", "d.regime right", "d.period right", "d.source right",
                "d.driven.orbit", "c.nano-settles.float64.at rest", "c.logistic 4.float64.chaotic"):
        assert numbers[key].value == 1, key
    assert numbers["c.nano-settles.bfloat16 computed.marginal"].value == 1
    assert numbers["b.fresh.regime.contraction-orbit"].value == 0
    assert numbers["d.amplitude error"].value < 1e-9
    assert numbers["d.held sources"].value == 0


@pytest.mark.study
def test_a_second_run_computes_nothing_again(study, smoke, monkeypatch):
    def never():
        raise AssertionError("a finished piece was made again")

    for module in study.PARTS.values():
        monkeypatch.setattr(module, "pieces", lambda tier, own=module.pieces: dict.fromkeys(own(tier), never))
    before = (smoke / "numbers.json").read_bytes()
    study.main(["--tier", "smoke", "--out", str(smoke)])
    assert (smoke / "numbers.json").read_bytes() == before


def test_an_interrupted_part_goes_on_with_the_next_piece(study, tmp_path):
    from reports.validation.pieces import computed

    made = []

    def piece(value):
        if value is None:
            raise KeyboardInterrupt
        made.append(value)
        return {"value": value}

    with pytest.raises(KeyboardInterrupt):
        computed(tmp_path, "one", {"a": lambda: piece(1), "b": lambda: piece(None)}, label="test")
    assert computed(tmp_path, "one", {"a": lambda: piece(1), "b": lambda: piece(2)}, label="test") == {
        "a": {"value": 1}, "b": {"value": 2}}
    assert made == [1, 2]
    assert computed(tmp_path, "other code", {"a": lambda: piece(3)}, label="test") == {"a": {"value": 3}}


def test_one_part_alone_leaves_the_numbers_to_the_rest(study, tmp_path, monkeypatch, capsys):
    for module in study.PARTS.values():
        monkeypatch.setattr(module, "pieces", lambda tier: {"nothing": lambda: 0})
    study.main(["--out", str(tmp_path), "--part", "d"])
    assert not (tmp_path / "numbers.json").exists()
    assert "parts d are computed" in capsys.readouterr().out


# ---- from numbers to pages ------------------------------------------------------------------------------------------

@pytest.mark.study
def test_the_pages_are_a_function_of_the_numbers(study, smoke):
    first, second = (study.report_of(numbers_of(study, smoke)) for _ in range(2))
    assert first.to_markdown() == second.to_markdown() == (smoke / "report" / "report.md").read_text()


def test_the_committed_pages_say_what_the_committed_numbers_say(study):
    numbers = numbers_of(study, COMMITTED)
    assert numbers.provenance["tier"] == "full"
    assert study.report_of(numbers).to_markdown() == (COMMITTED / "report" / "report.md").read_text()


def test_every_result_in_the_text_comes_from_the_numbers(study, tmp_path):
    """With all numbers replaced by one, no other digit is left in the sentences, but for names."""
    found = json.loads((COMMITTED / "numbers.json").read_text())
    for e in found["numbers"].values():
        e |= {"value": 0.5, "n": 5, "n_units": 5}
        e |= {"low": 0.5, "high": 0.5} if e["low"] is not None else {}
    (tmp_path / "numbers.json").write_text(json.dumps(found))
    report = study.report_of(numbers_of(study, tmp_path))
    told = [*report.findings, *(text for section in report.sections for text in (*section.text, *section.points))]
    cells = [cell.text for table in report.tables for row in table.rows for cell in row[1:] if cell.value is not None]
    assert len(told) > 8
    assert len(cells) > 200
    for text in [*told, *cells]:
        digits = set(re.findall(r"\d[\d.,]*\d|\d", NAMES.sub("", re.sub(r"\([^)]*\)$", "", text))))
        assert digits <= {"0.5", "0.500", "50", "50.0", "5", "0", "1"}, text


# ---- numbers --------------------------------------------------------------------------------------------------------

def test_numbers_come_back_from_their_file(study, tmp_path):
    numbers = study.Numbers({"study": "a test"})
    numbers.share("x", 3, 1000, name="rule", of="orbit")
    numbers.value("y", math.nan, name="rule", what="nothing")
    numbers.series["curve"] = [1.0, None]
    back = study.Numbers.read(numbers.save(tmp_path / "numbers.json"))
    assert back.to_json() == numbers.to_json()
    assert back.keys == ("x", "y")
    assert len(back) == 2
    assert back["x"] == numbers["x"]
    assert math.isnan(back["y"].value)
    assert back.text("{x:%} of {x:n}; {x:value%}; {x:high%}") == "0.300 [0.0619, 0.874] % of 1,000; 0.300 %; 0.874 %"
    assert back.cell("y").text == back.cell("unknown").text == ""
    assert [e.labels["key"] for e in back.estimates] == ["x", "y"]


def test_keys_forms_and_files_that_cannot_be_are_refused(study, tmp_path):
    numbers = study.Numbers()
    numbers.value("x", 1.0, name="rule", what="one")
    with pytest.raises(ValueError, match="a key must be new"):
        numbers.value("x", 1.0, name="rule", what="one")
    with pytest.raises(KeyError, match="no number is called 'y'"):
        numbers.text("{y}")
    with pytest.raises(KeyError, match="a form is one of"):
        numbers.text("{x:%%}")
    (tmp_path / "numbers.json").write_text('{"schema": "another"}')
    with pytest.raises(ValueError, match="does not hold numbers of a study"):
        study.Numbers.read(tmp_path / "numbers.json")


def test_exact_repeats_are_the_smallest_lag_bit_for_bit(study):
    from reports.validation.precision import exact_repeats

    t = torch.arange(96)
    states = torch.stack([t % 5, t % 1, t, torch.where(t < 40, t, t % 2)]).double()[:, :, None]
    assert exact_repeats(states).tolist() == [5, 1, 0, 2]
    assert exact_repeats(states + 1e-12 * torch.rand(states.shape).double()).tolist() == [0, 0, 0, 0]


# ---- source and driven tokens ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("sources", [(), (0,), (3,), (2, 5), (1, 4, 6)])
def test_a_source_and_the_tokens_it_drives_are_exact(sources):
    block = source_block(sources, n_tokens=8, width=6, seed=4)
    f = LoopMap.from_module(block, block.shape, causal=True)
    start = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *block.shape)))
    states = trajectory(f, start, 150, per="token").states
    half = (states[:, -1] - states[:, -2]).norm(dim=1).numpy() / 2
    np.testing.assert_allclose(half, block.amplitudes(), rtol=1e-9, atol=1e-12)
    assert ((half > 1e-9) == (np.array(block.roles) != "still")).all()
    np.testing.assert_allclose((states[:, -1] + states[:, -2]).numpy() / 2, block.fixed_point(), atol=1e-12)
    point = torch.from_numpy(block.fixed_point())[None]
    assert float((f(point) - point).abs().max()) < 1e-12
    cycle = torch.from_numpy(block.cycle())
    assert float((f(cycle) - cycle.roll(-1, dims=0)).abs().max()) < 1e-12
    at_point = token_spectrum(f, point[None])
    np.testing.assert_allclose(at_point["radius"], np.abs(block.own_multipliers(at="fixed point")).max(1), rtol=1e-9)
    assert np.flatnonzero(at_point["radius"] > 1).tolist() == list(sources)
    on_cycle = token_spectrum(f, cycle[:, None])
    period = len(cycle)
    np.testing.assert_allclose(on_cycle["radius"]**period, np.abs(block.own_multipliers()).max(1), rtol=1e-9)
    if len(sources) < 2:
        assert tuple(on_cycle["role"]) == block.roles


@pytest.mark.parametrize(("settings", "words"), [
    ({"sources": (8,)}, "sources must be different positions"), ({"sources": (1, 1)}, "sources must be different"),
    ({"keep": 0}, "keep"), ({"strength": 0.9}, "tokens diverge"), ({"gain": 1.2}, "nothing swings"),
    ({"width": 1}, "width"), ({"n_tokens": 2.5}, "n_tokens")])
def test_blocks_that_would_not_be_exact_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        source_block(**settings)


def test_own_multipliers_are_asked_for_in_one_of_two_places():
    with pytest.raises(ValueError, match="at must be cycle or fixed point"):
        source_block().own_multipliers(at="start")
