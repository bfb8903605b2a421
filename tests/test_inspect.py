"""The loop of a model that nobody has described is found by itself, and what is printed is a place to start from."""

import importlib
import itertools
import sys

import pytest
import torch
from looped_modules import early_exit, inject_and_norm, tied_copies
from test_models import BUILT, SMALL
from torch import nn

import dynloop
from dynloop.cli import main
from dynloop.models import inspect_model, recording
from dynloop.nano import load_checkpoint

HERE = {"sandwich_recurrence": ("transformer.adapter", *(f"transformer.core_block.{i}" for i in range(3))),
        "whole_stack": ("layers.0", "layers.1", "norm"),
        "two_stacks": ("L_module", "L_module", "L_module", "H_module"),
        "outer_steps": ("inner.L_level", "inner.L_level", "inner.H_level"),
        "one_network": ("inner.L_level",) * 3,
        "layer_group": ("group",),
        "inject_and_norm": ("inject", "recur.0", "recur.1", "norm_recur"),
        "narrow_loop": ("core_block.0",),
        "early_exit": ("block", "halt"),
        "tied_copies": tuple(tuple(f"layers.{r}.{i}" for r in range(3)) for i in range(2))}


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


def inspected(looped, loops=(2, 3)):
    tokens = torch.zeros(1, looped.n_tokens or 5, dtype=torch.long)

    def run(n):
        looped.run(tokens, n, looped.initial_state(looped.embed(tokens), seeds=[0]))

    return inspect_model(looped.module, run, loops=loops)


def test_every_small_module_has_an_answer():
    assert set(HERE) == set(SMALL)


@pytest.mark.parametrize("name", list(HERE))
def test_the_loop_is_found_with_its_order_of_calls(name):
    found = inspected(SMALL[name]())
    assert found.points == HERE[name]
    assert not {*found.steady} & {path for point in found.points for path in ([point] if isinstance(point, str)
                                                                              else point)}


@pytest.mark.parametrize("name", [*SMALL, *BUILT])
def test_what_is_found_holds_the_points_of_the_specification(name):
    looped = {**SMALL, **BUILT}[name]()
    found = inspected(looped)
    paths = {part: path for path, part in looped.module.named_modules()}
    outer = [path for point in found.points for path in ([point] if isinstance(point, str) else point)]
    for point in looped.points:
        for module in point.modules:
            assert any(paths[module] == path or paths[module].startswith(path + ".") for path in outer)


def test_calls_are_counted_at_both_numbers_of_loops():
    found = inspected(SMALL["two_stacks"](), loops=(2, 5))
    assert found.calls["L_module"] == (6, 15)
    assert found.calls["H_module.layers.1"] == (2, 5)
    assert found.steady == ("lm_head",)
    assert found.inside["L_module"] == ("L_module.layers.0", "L_module.layers.1", "L_module.final_norm")
    assert found.widths["H_module"] == 16
    assert "L_module: 6 -> 15" in str(found)


def test_an_outer_loop_is_named():
    found = inspected(SMALL["outer_steps"]())
    assert found.forwards == (1, 2)
    assert "forwards='recurrences'" in found.specification
    assert "an outer loop" in str(found)


def test_what_gives_no_state_is_put_aside():
    text = inspected(SMALL["early_exit"]()).specification
    assert "    'block',  # width 16" in text
    assert "    # 'halt' has width 1: no state" in text


@pytest.mark.parametrize(("home", "loops"), [(inject_and_norm, "num_recur"), (early_exit, "n_loops"),
                                             (tied_copies, None)])
def test_the_printed_specification_records(tmp_path, home, loops):
    full = home.looped()
    model, tokens = full.module, torch.tensor([[1, 2, 3]])
    text = inspect_model(model, lambda n: model(tokens, **({loops: n} if loops else {})),
                         loop_argument=loops).specification
    space = {"dynloop": importlib.import_module("dynloop"), "model": model}
    importlib.import_module("dynloop.models")
    exec(text, space)
    stores = [dynloop.capture(m, [[1, 2, 3]], out=tmp_path / str(i), n_recurrences=3, layers=[len(m.points)])
              for i, m in enumerate((full, space["looped"]))]
    assert torch.equal(stores[0].trajectories().states, stores[1].trajectories().states)


def test_the_model_comes_back_unchanged():
    looped = SMALL["sandwich_recurrence"]()
    looped.module.train()
    state = torch.get_rng_state()
    inspected(looped)
    model = looped.module
    inspect_model(model, lambda n: model(torch.tensor([[1, 2]]), num_steps=n))  # draws a start
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize(("make", "words"), [
    (lambda m: inspect_model(m, lambda n: m(torch.tensor([[1]]))), "no module was called more often at 3 loops"),
    (lambda m: inspect_model(m, lambda n: m.recur[0](torch.ones(1, 2, 16))), "forward pass was never called"),
    (lambda m: inspect_model(m, print, loops=(3, 2)), r"two growing whole numbers from 1, such as .* got \(3, 2"),
])
def test_what_has_no_loop_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(inject_and_norm.looped().module)


class CallsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x, n):
        x = torch.tanh(self.map(x))
        return self(x, n - 1) if n > 1 else x


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.block, self.out = nn.Embedding(9, 4), CallsItself(), nn.Linear(4, 9)

    def forward(self, tokens, n_loops=2):
        return self.out(self.block(self.wte(tokens), n_loops))


def test_a_module_that_calls_itself_is_found_and_read_at_its_input():
    model, tokens = Around(), torch.tensor([[1, 2, 3]])
    found = inspect_model(model, lambda n: model(tokens, n), loop_argument="n_loops")
    assert found.points == ("block",)
    assert found.recursive == ("block",)
    space = {"dynloop": importlib.import_module("dynloop"), "model": model}
    importlib.import_module("dynloop.models")
    exec(found.specification, space)
    seen = []
    with torch.no_grad(), recording(space["looped"], lambda *place: seen.append(place[-1].clone())) as calls:
        model(tokens, 4)
    calls.check(4)
    for before, after in itertools.pairwise(seen):
        torch.testing.assert_close(after, torch.tanh(model.block.map(before)).detach())


def test_modules_that_call_each_other_in_a_ring_are_refused():
    class Half(nn.Module):
        def forward(self, x, n):
            return self.other[0](x.cos(), n - 1) if n > 0 else x

    class Ring(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Half(), Half()
            self.a.other, self.b.other = [self.b], [self.a]

        def forward(self, x, n):
            return self.a(x, n)

    model = Ring()
    with pytest.raises(ValueError, match=r"call each other in a ring \(a, b\): none of them holds the loop"):
        inspect_model(model, lambda n: model(torch.ones(1, 2), 2 * n))


@pytest.mark.parametrize("length", ["0", "-1"])
def test_a_prompt_of_no_tokens_is_refused_from_the_command_line(length, capsys):
    assert main(["inspect", "nano-settles", f"--length={length}"]) == 1
    assert f"--length must be a whole number of at least 1 token (the default is 8); got {length}" in \
        capsys.readouterr().err


def test_a_shipped_model_is_inspected_from_the_command_line(capsys):
    assert main(["inspect", "nano-settles", "--at", "2,4"]) == 0
    told = capsys.readouterr().out
    assert "nano-settles is of the family nano" in told
    assert "layer 2, stack block: output of loop_norm" in told
    assert "block.1: 2 -> 4" in told
    assert "dynloop.models.hooked_block(model, [" in told


def test_any_module_that_can_be_imported_is_inspected_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_model.py").write_text(
        "from looped_modules import layer_group\nfrom looped_modules.parts import initialised\n"
        "def build():\n    return initialised(layer_group.Model)\ndef number():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["inspect", "my_model:build", "--loops", "config.num_hidden_layers"]) == 0
    told = capsys.readouterr().out
    assert "'group',  # width 16" in told
    assert "loops='config.num_hidden_layers')" in told
    for arguments, words in ((["my_model:build"], "--loops must say what sets the number of loops"),
                             (["my_model:number", "--loops", "n"], "must give a torch module; it gave int"),
                             (["my_model:nothing", "--loops", "n"], "cannot be imported"),
                             (["my_model:build", "--loops", "n"], "loops='n' is neither an argument"),
                             (["nano-settles", "--at", "2"], "--at needs two numbers"),
                             (["nano-nothing"], "no model 'nano-nothing'")):
        assert main(["inspect", *arguments]) == 1
        assert words in capsys.readouterr().err


def test_paths_through_compiled_wrappers_are_the_plain_ones():
    model, _ = load_checkpoint("nano-settles")
    plain = inspect_model(model, lambda n: model(torch.zeros(1, 3, dtype=torch.long), n_recurrences=n)).points
    wrapped = torch.compile(model, backend="eager")
    found = inspect_model(wrapped, lambda n: wrapped(torch.zeros(1, 3, dtype=torch.long), n_recurrences=n)).points
    assert found == plain == ("adapter", "block.0", "block.1", "loop_norm")
    assert isinstance(wrapped, nn.Module)
