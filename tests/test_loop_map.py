"""Live maps against dense algebra, differences and the model's own forward pass; and the model comes back unchanged."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from dynloop.maps.loop_map import LoopMap
from dynloop.models import nano
from dynloop.nano import NanoConfig, NanoModel
from dynloop.nano.config import INJECTIONS, STARTS
from dynloop.nano.config import NORMS as NANO_NORMS
from dynloop.testing import MAP_CONTRACTS, check_map
from synthetic.blocks import NORMS, affine_block, turning_block

T, WIDTH = 6, 16
CONFIGS = [NanoConfig(width=WIDTH, n_heads=2, injection=i, norm=n, loop_norm=loop, initial_state=s)
           for i, n, loop, s in itertools.product(INJECTIONS, NANO_NORMS, (True, False), STARTS)
           if not (i == "none" and s == "random")]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


def normal(*shape, seed=0, device="cpu"):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(device)


def text(n=3, length=T, seed=0):
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(seed))


def name_of(config):
    return f"{config.injection}-{config.norm}-{'norm' if config.loop_norm else 'open'}-{config.initial_state}"


def model_of(config=CONFIGS[-1], device="cpu"):
    return nano(NanoModel(config, seed=1).to(device))


def differences(f, x, v, step=1e-3):
    """J v by central differences of sixth order."""
    return sum(c * (f(x + i * step * v) - f(x - i * step * v)) for i, c in ((1, 45), (2, -9), (3, 1))) / (60 * step)


# ---- a looped model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_the_map_of_a_model_is_exact_to_first_order(config, device):
    f = LoopMap.of(model_of(config, device), text())
    x = f.initial_states() + 0.1 * normal(3, T, WIDTH, device=device)
    v, w = normal(3, T, WIDTH, seed=1, device=device), normal(3, T, WIDTH, seed=2, device=device)
    following, pushed = f.jvp(x, v)
    back = f.vjp(x, w)[1]
    assert (following - f(x)).norm() <= 1e-14 * following.norm()
    assert (pushed - differences(f, x, v)).norm() <= 1e-9 * pushed.norm()
    assert abs((pushed * w).sum() - (v * back).sum()) <= 1e-12 * pushed.norm() * w.norm()


@pytest.mark.parametrize("config", CONFIGS[::3], ids=name_of)
def test_own_token_tangents_have_the_eigenvalues_of_the_whole_jacobian(config):
    f = LoopMap.of(model_of(config), text(1, 4))
    x = f.initial_states() + 0.1 * normal(1, 4, WIDTH)
    units = torch.eye(WIDTH, dtype=torch.float64)[:, None, None].expand(-1, 1, 4, -1)
    blocks = f.own_token_jvps(x, units)[1][:, 0].permute(1, 2, 0)  # (token, out, in)
    ours = np.sort(np.abs(torch.linalg.eigvals(blocks).numpy().ravel()))
    np.testing.assert_allclose(ours, np.sort(np.abs(np.linalg.eigvals(f.jacobian(x)[0].numpy()))), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_recurrences_of_the_map_are_those_of_the_model(dtype):
    model, tokens = model_of(), text()
    f = LoopMap.of(model, tokens, dtype=dtype)
    with torch.no_grad():
        context = model.embed(tokens)
        expected = model.initial_state(context, seeds=[5, 6, 7])
        h = f.initial_states(seeds=[5, 6, 7])
        assert h.dtype == torch.float32
        for _ in range(4):
            h, expected = f(h), model.step(expected, context)
        torch.testing.assert_close(h, expected)
        torch.testing.assert_close(f.readout(h), model.run(tokens, 4, model.initial_state(context, seeds=[5, 6, 7])))


MAPS = {"a model": lambda: LoopMap.of(model_of(), text()),
        "in float32": lambda: LoopMap.of(model_of(), text(), dtype=torch.float32),
        "a module": lambda: LoopMap.from_module(Coupled(9), (9,)),
        "small": lambda: LoopMap.from_module(Coupled(3), (3,)),
        "a function": lambda: LoopMap(lambda x, contexts: torch.sin((1 + contexts[:, None]) * x), (20,), n_contexts=3),
        "one token": lambda: LoopMap.of(model_of(), text()).of_token(2, normal(3, T, WIDTH))}


@pytest.mark.parametrize("contract", MAP_CONTRACTS)
@pytest.mark.parametrize("name", MAPS)
def test_maps_keep_their_contract(name, contract):
    check_map(MAPS[name](), only=[contract])


def test_rows_run_in_context_by_context_if_nothing_is_said():
    f, x = LoopMap.of(model_of(), text(3)), normal(5, T, WIDTH)
    torch.testing.assert_close(f(x), f(x, [0, 1, 2, 0, 1]))


def test_a_selection_of_contexts_is_embedded_once():
    model, calls = model_of(), []

    def embed(tokens):
        calls.append(len(tokens))
        return model.embed(tokens)

    f = LoopMap.of(dataclasses.replace(model, embed=embed), text(3))
    calls.clear()
    for _ in range(3):
        f.jvps(f(normal(2, T, WIDTH), [0, 2]), normal(2, 2, T, WIDTH), [0, 2])
    assert calls == [2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, None])
def test_the_model_comes_back_unchanged(dtype):
    model = model_of()
    module = model.module.train()
    next(module.parameters()).grad = torch.ones_like(next(module.parameters()))
    called = []
    module.block[0].register_forward_hook(lambda *_: called.append(1))
    module.block[0].eval()
    before = {part: {k: dict(v) if isinstance(v, dict) else v for k, v in part.__dict__.items()}
              for part in module.modules()}
    weights = {name: w.clone() for name, w in module.state_dict().items()}
    random, grad_enabled = torch.get_rng_state(), torch.is_grad_enabled()
    f = LoopMap.of(model, text(), dtype=dtype)
    x = f.initial_states()
    for call in (f, f.readout, f.jacobian):
        call(x[:1])
    for call in (f.jvps, f.vjps, f.own_token_jvps):
        call(x, torch.ones(2, *x.shape))
    with pytest.raises(ValueError, match="maps states"):
        f(x[0])
    assert {part: part.__dict__ for part in module.modules()} == before
    assert all(torch.equal(w, weights[name]) for name, w in module.state_dict().items())
    assert next(module.parameters()).grad.sum() == next(module.parameters()).numel()
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled() == grad_enabled
    assert not x.requires_grad
    assert called  # a hook that steers is part of the model


def test_a_model_that_stays_lent_gives_the_same_and_comes_back():
    model, which = model_of(), [0, 1]
    f, x = LoopMap.of(model, text(2)), normal(2, T, WIDTH)
    token = f.of_token(1, x, which)
    expected, of_token = (f(x), f.jvp(x, x)[1]), token(x[:, 1])
    weight = model.module.head.weight
    for each in (f, token):
        with each.held(), f.held():
            assert model.module.head.weight.dtype == torch.float64
            assert torch.equal(f(x), expected[0])
            assert torch.equal(f.jvp(x, x)[1], expected[1])
            assert torch.equal(token(x[:, 1]), of_token)
        assert model.module.head.weight is weight


def test_a_start_may_be_changed_without_changing_the_context():
    f = LoopMap.of(model_of(CONFIGS[0]), text())
    x = f.initial_states()
    before = f(x)
    x.zero_()
    torch.testing.assert_close(f(f.initial_states()), before)


def test_of_a_model_whose_maps_differ_one_recurrence_is_taken():
    model = model_of()
    changing = dataclasses.replace(
        model, autonomous=False, step=lambda h, context, recurrence=0: model.step(h, context) * (1 + recurrence))
    same, x = LoopMap.of(model, text()), normal(3, T, WIDTH)
    torch.testing.assert_close(LoopMap.of(changing, text(), recurrence=2)(x), 3 * same(x))
    with pytest.raises(ValueError, match="different map at every recurrence"):
        LoopMap.of(changing, text())
    with pytest.raises(ValueError, match="same map at every recurrence; got recurrence=2"):
        LoopMap.of(model, text(), recurrence=2)
    with pytest.raises(ValueError, match="recurrence must be a whole number of at least 0"):
        LoopMap.of(changing, text(), recurrence=-1)


def test_a_step_that_draws_random_numbers_is_refused():
    model = model_of()
    noisy = dataclasses.replace(model, step=lambda h, context: model.step(h, context) + torch.randn(()))
    f, state = LoopMap.of(noisy, text()), torch.get_rng_state()
    with pytest.raises(ValueError, match="nano draws random numbers in its step"):
        f(f.initial_states())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_no_looped_model_is_refused():
    with pytest.raises(TypeError, match=r"got NanoModel\. Put the model behind its family"):
        LoopMap.of(NanoModel(CONFIGS[0]), text())


@pytest.mark.parametrize("tokens", [torch.zeros(3, dtype=torch.long), torch.zeros(0, 3, dtype=torch.long),
                                    torch.zeros(2, 3)])
def test_tokens_of_another_shape_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens must be whole numbers"):
        LoopMap.of(model_of(), tokens)


# ---- any module or function


@pytest.mark.parametrize("block", [affine_block(), *(turning_block(norm=norm) for norm in NORMS)],
                         ids=lambda block: block.name)
def test_a_known_block_has_its_fixed_points_and_multipliers(block):
    e = block.embed([0, 1])
    f = LoopMap.from_module(block, (block.width,), contexts=[e])
    limit = block.limits(e)[:, 0, -1]
    torch.testing.assert_close(f(limit), limit, rtol=1e-12, atol=1e-12)
    found = np.linalg.eigvals(f.jacobian(limit)[0].numpy())
    np.testing.assert_allclose(np.sort(np.abs(found)), np.sort(np.abs(block.exact["multipliers"])), atol=1e-6)


class Coupled(nn.Module):
    def __init__(self, dim):
        super().__init__()
        torch.manual_seed(dim)
        self.weight = nn.Parameter(torch.randn(dim, dim) / dim**0.5)

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.weight.T).view_as(x) + 0.3 * x


@pytest.mark.parametrize("shape", [(3,), (8,), (9,), (4, 5)], ids=str)
def test_all_products_agree_with_the_dense_jacobian(shape):
    """States of up to eight numbers are differentiated backwards, others forwards."""
    module = Coupled(int(np.prod(shape))).double()
    for f in (LoopMap(lambda x, contexts: module(x), shape), LoopMap.from_module(module, shape)):
        x, v, w = normal(4, *shape), normal(3, 4, *shape, seed=1), normal(3, 4, *shape, seed=2)
        dense = f.jacobian(x)
        expected = torch.stack([torch.autograd.functional.jacobian(module, row[None]).view(f.dim, f.dim) for row in x])
        torch.testing.assert_close(dense, expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(f.jacobian(x, at_once=2), dense, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(f.jvps(x, v)[1], torch.einsum("nij,knj->kni", dense, v.flatten(2)).view_as(v),
                                   rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(f.jvp(x, v[0])[1], f.jvps(x, v)[1][0], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(f.vjps(x, w)[1], torch.einsum("nij,kni->knj", dense, w.flatten(2)).view_as(w),
                                   rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(f.vjp(x, w[0])[1], f.vjps(x, w)[1][0], rtol=1e-12, atol=1e-13)
        for following in (f.jvps(x, v)[0], f.jvp(x, v[0])[0], f.vjps(x, w)[0]):
            torch.testing.assert_close(following, f(x), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dim", [2, 20])
def test_gradients_that_the_map_cuts_are_followed_all_the_same(dim):
    def function(x, contexts):
        with torch.no_grad():
            x = torch.sin(x)
        return x.detach() * 2

    f, x, v = LoopMap(function, (dim,)), normal(2, dim), normal(2, dim, seed=1)
    for product in (f.jvp, f.vjp):
        torch.testing.assert_close(product(x, v)[1], 2 * torch.cos(x) * v)


class Straight(torch.autograd.Function):
    """Halves, and says on the way back that it does not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * 0.5

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * 0.5


class Bent(nn.Module):
    def forward(self, x):
        return torch.sin(Straight.apply(x))


class Inference(nn.Module):
    @torch.inference_mode()
    def forward(self, x):
        return torch.sin(x)


def test_a_derivative_that_the_code_bends_on_the_way_back_is_refused():
    f, x = LoopMap.from_module(Bent(), (20,)), normal(2, 20)
    torch.testing.assert_close(f.jvp(x, x)[1], 0.5 * torch.cos(0.5 * x) * x)
    for _ in range(2):
        with pytest.raises(ValueError, match="Bent has another derivative backwards than forwards"):
            f.vjp(x, x)


def test_inference_mode_is_refused_backwards():
    with pytest.raises(ValueError, match="inference mode"):
        LoopMap.from_module(Inference(), (20,)).vjp(normal(2, 20), normal(2, 20))
    with pytest.raises(ValueError, match="inference mode"):
        LoopMap(lambda x, c: Inference()(x), (2,)).jvp(normal(2, 2), normal(2, 2))


@pytest.mark.parametrize("dim", [2, 20])
def test_a_map_that_forgets_its_state_has_no_derivative_left(dim):
    f = LoopMap(lambda x, contexts: torch.ones_like(x), (dim,))
    for product in (f.jvps, f.vjps):
        assert (product(normal(2, dim), normal(3, 2, dim))[1] == 0).all()
    assert (f.jacobian(normal(2, dim)) == 0).all()


def test_a_function_with_contexts_of_its_own():
    pull = normal(3, 4)
    f = LoopMap.from_module(lambda x, e: 0.5 * x + e, (4,), contexts=[pull.float()])
    assert f.n_contexts == 3
    assert f.dtype == torch.float64
    torch.testing.assert_close(f(torch.zeros(2, 4), [2, 0]), pull.float().double()[[2, 0]])
    assert LoopMap.from_module(lambda x, e: x + e, (4,), contexts=[pull.float()], dtype=None).dtype == torch.float32


def test_contexts_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"one row a context; got \[2, 3\] rows"):
        LoopMap.from_module(lambda x, a, b: x, (4,), contexts=[torch.zeros(2), torch.zeros(3)])


def test_small_maps_start_without_the_compiler():
    """Forward mode loads torch's compiler, a second and more; states of a few numbers do not need it."""
    import subprocess
    import sys

    code = ("import sys, torch; from dynloop.maps.loop_map import LoopMap; "
            "f = LoopMap(lambda x, c: torch.stack((1 - 1.4 * x[:, 0]**2 + x[:, 1], 0.3 * x[:, 0]), -1), (2,)); "
            "f.jvps(f(torch.zeros(5, 2)), torch.ones(2, 5, 2)); f.vjp(torch.zeros(5, 2), torch.ones(5, 2)); "
            "print('torch._dynamo' in sys.modules)")
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


# ---- one token


def test_one_token_with_the_others_held_is_a_diagonal_block():
    f, x = LoopMap.of(model_of(), text(2)), normal(3, T, WIDTH)
    which = [1, 0, 1]
    g = f.of_token(-2, x, which)
    assert (g.state_shape, g.n_contexts) == ((WIDTH,), 3)
    token = x[:, -2]
    torch.testing.assert_close(g(token), f(x, which)[:, -2], rtol=1e-12, atol=1e-13)
    block = f.jacobian(x, which).view(3, T, WIDTH, T, WIDTH)[:, -2, :, -2]
    torch.testing.assert_close(g.jacobian(token), block, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(g.vjp(token, token)[1], torch.einsum("nij,ni->nj", block, token), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(g(token[:2], [2, 2]), g(token[[0, 1]].clone(), torch.tensor([2, 2])))
    torch.testing.assert_close(g(token[2:], [2]), g(token)[2:], rtol=1e-12, atol=1e-13)


def test_a_token_that_is_not_there_is_an_error():
    f = LoopMap.of(model_of(), text())
    with pytest.raises(IndexError, match="token 6 of 6"):
        f.of_token(6, normal(1, T, WIDTH))
    with pytest.raises(ValueError, match=r"map has states \(3,\)"):
        LoopMap(lambda x, c: x, (3,)).of_token(0, normal(1, 3))


# ---- what is refused


def test_states_and_tangents_of_another_shape_are_refused():
    f = LoopMap(lambda x, c: x, (3,), name="identity")
    with pytest.raises(ValueError, match=r"identity maps states \(n, 3\); got \(3,\)"):
        f(normal(3))
    with pytest.raises(ValueError, match=r"tangents must have shape \(k, 2, 3\), as the states have; got \(2, 3\)"):
        f.jvps(normal(2, 3), normal(2, 3))
    with pytest.raises(ValueError, match=r"cotangents must have shape \(k, 2, 3\)"):
        f.vjps(normal(2, 3), normal(1, 4, 3))
    with pytest.raises(ValueError, match="at_once must be a whole number"):
        LoopMap(lambda x, c: x, (30,)).jacobian(normal(2, 30), at_once=0)


@pytest.mark.parametrize("contexts", [[0], [0, 2], [-1, 0], [0.0, 1.0], [True, False]])
def test_contexts_that_do_not_exist_are_refused(contexts):
    f = LoopMap(lambda x, c: x, (3,), n_contexts=2)
    with pytest.raises(ValueError, match="contexts must be 2 whole numbers from 0 to 1"):
        f(normal(2, 3), contexts)


def test_own_tokens_are_refused_of_a_map_that_is_not_causal():
    f = LoopMap(lambda x, c: x, (3, 2))
    with pytest.raises(ValueError, match="map is not causal"):
        f.own_token_jvps(normal(1, 3, 2), normal(1, 1, 3, 2))


class Prefix(nn.Module):
    """Causal but for the first three tokens, which see one another, as with a prefix mask."""

    def forward(self, x):
        seen = torch.ones(T, T).tril().bool()
        seen[:3, :3] = True
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=seen)


def test_a_prefix_that_sees_itself_is_not_causal():
    f = LoopMap.from_module(Prefix(), (T, 4), causal=True)
    with pytest.raises(ValueError, match="reach earlier ones"):
        f.own_token_jvps(normal(1, T, 4), normal(1, 1, T, 4))


def test_only_a_map_of_a_model_has_initial_states_and_a_readout():
    f = LoopMap(lambda x, c: x, (3,))
    with pytest.raises(ValueError, match="was not made from a looped model, which alone has initial states"):
        f.initial_states()
    with pytest.raises(ValueError, match="which alone has a readout"):
        f.readout(normal(1, 3))
    with pytest.raises(ValueError, match="one seed a row is needed; got 1 seeds for 3 rows"):
        LoopMap.of(model_of(), text()).initial_states(seeds=[0])


def test_a_map_says_what_it_is():
    assert repr(LoopMap(lambda x, c: x, (3,))) == "LoopMap(map: states (3,), 1 context, float64)"


def test_a_module_that_writes_to_its_buffers_is_no_map():
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x):
            self.n += 1
            return x / 2 + self.n

    module = Counter()
    f = LoopMap.from_module(module, (2,))
    for _ in range(2):
        with pytest.raises(ValueError, match="Counter writes to its own buffers"):
            f(torch.zeros(1, 2))
    assert module.n == 0


@pytest.mark.parametrize("shape", [(), 3, (2, 0), ("a",)])
def test_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(ValueError, match="state_shape must be a sequence of whole numbers above 0"):
        LoopMap(lambda x, contexts: x, shape)


def test_a_function_that_changes_the_shape_is_no_map():
    with pytest.raises(ValueError, match=r"gave \(4, 1\) for states \(4, 2\)"):
        LoopMap(lambda x, contexts: x[:, :1], (2,))(torch.zeros(4, 2))


@pytest.mark.parametrize("n", [2, 16])
def test_a_caller_in_inference_mode_gets_every_product(n):
    layer = nn.Linear(n, n).double()
    x = torch.ones(2, n, dtype=torch.float64)
    with torch.inference_mode():
        made, given = LoopMap.from_module(layer, (n,)), torch.ones(2, n, dtype=torch.float64)
    for f in (made, LoopMap(lambda x, c: layer(x), (n,))):
        with torch.inference_mode():
            inside = f.jvp(given, given)[1], f.vjp(given, given)[1], f.jacobian(given)
        for one, other in zip(inside, (f.jvp(x, x)[1], f.vjp(x, x)[1], f.jacobian(x)), strict=True):
            assert torch.equal(one, other)


def test_weights_that_were_made_in_inference_mode_are_told_from_a_map_that_runs_in_it():
    with torch.inference_mode():
        layer = nn.Linear(16, 16).double()
    x = torch.ones(2, 16, dtype=torch.float64)
    assert LoopMap.from_module(layer, (16,)).vjp(x, x)[1].shape == (2, 16)
    with pytest.raises(ValueError, match=r"weights or other tensors that were made within torch.inference_mode\(\)"):
        LoopMap(lambda x, c: layer(x), (16,)).vjp(x, x)


def test_a_function_may_cast_its_module_on_every_call():
    x = torch.linspace(0, 1, 48, dtype=torch.float64).reshape(3, 16)
    for cast in (nn.Module.double, lambda layer: layer.half().double()):
        layer = nn.Linear(16, 16)
        f = LoopMap.from_module(lambda x, layer=layer, cast=cast: cast(layer)(x), (16,))
        wanted = x @ cast(layer).weight.T
        torch.testing.assert_close(f.jvp(x, x)[1], wanted)
        torch.testing.assert_close(f.jvps(x, torch.stack([x, 2 * x]))[1], torch.stack([wanted, 2 * wanted]))
        torch.testing.assert_close(f.vjp(x, x)[1], x @ layer.weight)


def test_a_function_that_writes_its_state_to_a_weight_is_no_map():
    layer = nn.Linear(16, 16).double()

    def step(x, contexts):
        layer.weight.data = layer.weight * x.mean()
        return layer(x)

    x = torch.ones(2, 16, dtype=torch.float64)
    for ask in (lambda f: f.jvp(x, x), lambda f: f.jvps(x, torch.stack([x, x]))):
        layer.weight = nn.Parameter(torch.eye(16, dtype=torch.float64))
        with pytest.raises(ValueError, match=r"writes what depends on its state to a weight"):
            ask(LoopMap(step, (16,)))
