"""Every adapter describes the models of its family, leaves them as they are, and refuses the others.

The adapters were developed against each family's own code, which is not here. What runs here are the two families that
transformers ships, and small modules that are called as the models of the others are (lookalikes.py).
"""

import contextlib
import dataclasses
import importlib
import json
import types

import lookalikes
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dynloop.models import load, nano, recording, undisturbed
from dynloop.models.by_name import families
from dynloop.models.family import drawn, encoder, weights_hash
from dynloop.models.looped_model import temporarily
from dynloop.nano import NanoConfig, NanoModel
from dynloop.recording import capture
from dynloop.testing import MODEL_CONTRACTS, check_looped_model
from dynloop.testing.condition import condition
from dynloop.testing.contract import differ

N = 5  # recurrences
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")


def albert(**settings):
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(**{
        "vocab_size": 31, "embedding_size": 6, "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2,
        "intermediate_size": 16, "inner_group_num": 2, "max_position_embeddings": 32, **settings})
    return transformers.AlbertForMaskedLM(config)


def hrm_text(**settings):
    transformers = pytest.importorskip("transformers", minversion="5.9")
    config = transformers.HrmTextConfig(**{
        "vocab_size": 31, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "head_dim": 4, "H_cycles": 2, "L_cycles": 3, "max_position_embeddings": 32, **settings})
    return transformers.HrmTextForCausalLM(config)


def eager(make):
    def made():
        model = make()
        model.set_attn_implementation("eager")
        return model
    return made


BUILT = {"nano": ("nano", lambda: NanoModel(NanoConfig(width=8, n_heads=2, initial_state="random"))),
         "albert": ("albert", albert), "albert, eager": ("albert", eager(albert)), "hrm_text": ("hrm_text", hrm_text),
         "hrm_text, eager": ("hrm_text", eager(hrm_text)), **lookalikes.MODELS}


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


def built(name):
    """A model with weights that are neither small nor the same everywhere, in training mode, and its family."""
    family, make = BUILT[name]
    if family == "ouro":
        pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = make()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.5 * torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    return model, family


def tokens_of(looped, n=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, looped.vocabulary, (n, looped.n_tokens or 6), generator=generator)


@pytest.mark.parametrize("name", BUILT)
class TestOfEveryFamily:
    def test_a_module_is_recognised_as_its_family_and_no_other(self, name):
        model, family = built(name)
        found = [known for known, home in families() if home.recognises(model)]
        assert found == [family]
        assert load(model, name="mine").name == "mine"
        assert load(model).provenance["family"] == family

    @pytest.mark.parametrize("contract", MODEL_CONTRACTS)
    def test_its_specification_keeps_the_contract(self, name, contract):
        check_looped_model(load(built(name)[0]), n_recurrences=N, only=[contract])

    def test_the_model_comes_back_as_it_was_from_being_loaded(self, name):
        model, _ = built(name)
        before = condition(model)
        load(model)
        assert not differ(before, condition(model))

    def test_the_hash_in_its_provenance_follows_the_weights(self, name):
        model, family = built(name)
        record = load(model).provenance
        assert len(record["sha256"]) == 64
        if family != "nano":
            assert record["class"] == type(model).__name__
        with torch.no_grad():
            next(model.parameters()).flatten()[0] += 1
        assert load(model).provenance["sha256"] != record["sha256"]


# ---- what only one of them has

def test_two_timescales_stand_in_the_schedule_as_they_are_called():
    for name, low_layers in (("hrm", 2), ("trm", 2)):
        looped = load(built(name)[0])
        assert [point.stack for point in looped.points] == ["L"] * 3 * low_layers + ["H"] * 2
        assert [range(len(looped.points))[i] for i in looped.state_points] == [5, 7]
    assert len({id(point.modules[0]) for point in looped.points}) == 2  # TRM: one network for both states


def test_the_outer_loop_carries_on_beyond_its_halting_and_between_its_steps():
    model, _ = built("hrm")
    looped = load(model, name="puzzles")
    tokens = tokens_of(looped)
    with undisturbed(model):
        context = looped.embed(tokens)
        state = looped.initial_state(context)
        for n in range(1, 8):  # outer steps of 2, halting after 2 of them
            state = looped.step(state, context)
            torch.testing.assert_close(looped.run(tokens, n, looped.initial_state(context)),
                                       looped.readout(state, context))


def test_a_puzzle_of_its_own_number():
    from dynloop.models.hrm import hrm
    from dynloop.models.trm import trm
    model, _ = built("hrm")
    tokens = tokens_of(hrm(model))
    with undisturbed(model):
        assert not torch.equal(hrm(model).embed(tokens)["embedded"], hrm(model, puzzle=1).embed(tokens)["embedded"])
    for family, name in ((hrm, "hrm"), (trm, "trm")):
        with pytest.raises(ValueError, match="puzzle must be a whole number from 0 to 3"):
            family(built(name)[0], puzzle=4)
    with pytest.raises(ValueError, match="hrm takes 5 tokens; got 3"):
        hrm(model).embed(torch.zeros(1, 3, dtype=torch.long))


def test_ouro_gives_the_logits_of_the_last_recurrence_whatever_its_exit():
    model, _ = built("ouro")
    looped = load(model)
    with undisturbed(model):
        context = looped.embed(tokens_of(looped))
        assert not torch.equal(looped.run(tokens_of(looped), 4, context["embedded"]),
                               looped.run(tokens_of(looped), 2, context["embedded"]))
    assert model.model.total_ut_steps == 4


def test_a_start_from_the_own_code_is_that_of_a_user_who_seeds():
    model, _ = built("huginn")
    looped = load(model)
    tokens = tokens_of(looped, 1)
    with undisturbed(model):
        torch.manual_seed(3)
        own = model(tokens, num_steps=N).logits
        torch.testing.assert_close(own, looped.run(tokens, N, looped.initial_state(looped.embed(tokens), seeds=[3])))


def test_a_start_is_the_same_in_every_precision():
    like = torch.zeros(2, 3, 4)
    wide = drawn(like.double(), [1, 2], torch.randn_like)
    assert torch.equal(wide.float(), drawn(like, [1, 2], torch.randn_like))
    with pytest.raises(ValueError, match="got 1 seeds for 2 prompts"):
        drawn(like, [1], torch.randn_like)


def test_hrm_text_runs_as_its_users_run_it():
    model, _ = built("hrm_text")
    looped = load(model)
    tokens = tokens_of(looped)
    with undisturbed(model):
        own = model(tokens, use_cache=False).logits
        assert torch.equal(own, looped.run(tokens, 2, looped.initial_state(looped.embed(tokens))))


@pytest.mark.parametrize("name", ["huginn", "retrofit", "retrofit, skipping", "ouro", "hrm_text"])
def test_generation_is_captured_with_the_cache_as_the_model_runs_it(name, tmp_path):
    looped = load(built(name)[0])
    prompt, seed, states = tokens_of(looped, 1), 3, {}
    store = capture(looped, prompt.tolist(), out=tmp_path / "s", n_recurrences=N, n_new_tokens=3, seed=seed)
    orbits = store.trajectories()
    with undisturbed(looped.module):
        torch.manual_seed(seed)
        start = looped.initial_state(looped.embed(prompt), seeds=[seed])
        with recording(looped, lambda f, r, p, state: states.update({(f, r, p): state.clone()})) as calls:
            made = looped.generate(prompt, N, start, 3)
    assert calls.recurrences == [N] * 3
    batch, = store.inputs()
    assert torch.equal(batch["generated"], made)
    layer = len(looped.points)
    for token in range(8):  # all but the last new one
        forward, place = max(0, token - 5), min(token, 5) if token < 6 else 0
        orbit, = store.trajectories(layer=layer, token=token).states
        for r in range(N):
            assert torch.equal(orbit[r], states[forward, r, layer - 1][0, place])
    assert orbits.n_orbits == 8 * layer


def test_new_tokens_of_a_random_start_repeat_with_the_seed():
    looped = load(built("huginn")[0])
    prompt = tokens_of(looped, 1)
    with undisturbed(looped.module):
        start = looped.initial_state(looped.embed(prompt), seeds=[3])
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            with recording(looped, lambda f, r, p, state: states.append(state.clone())):
                looped.generate(prompt, 2, start, 2)
    n = len(states) // 3
    assert all(torch.equal(a, b) for a, b in zip(states[:n], states[n:2 * n], strict=True))
    assert not torch.equal(states[n // 2], states[2 * n + n // 2])


def test_hrm_text_generates_with_its_cache_what_it_generates_without():
    model, _ = built("hrm_text")
    looped = load(model)
    tokens = expected = tokens_of(looped)
    with undisturbed(model):
        for _ in range(3):
            context = looped.embed(expected)
            logits = looped.run(expected, 4, looped.initial_state(context))
            expected = torch.cat((expected, logits[:, -1:].argmax(-1)), dim=1)
        start = looped.initial_state(looped.embed(tokens))
        assert torch.equal(looped.generate(tokens, 4, start, 3), expected)
        config = repr(model.config)
    assert "H_cycles\": 2" in config


def test_albert_runs_as_its_users_run_it_and_several_groups_are_no_one_map():
    model, _ = built("albert")
    looped = load(model)
    tokens = tokens_of(looped)
    with undisturbed(model):
        own = model(tokens).logits
        assert torch.equal(own, looped.run(tokens, 4, looped.initial_state(looped.embed(tokens))))
    with pytest.raises(ValueError, match="2 groups of layers"):
        load(albert(num_hidden_groups=2))


def test_noise_at_every_recurrence_is_refused():
    model, _ = built("huginn")
    model.config.test_time_noise = 0.1
    with pytest.raises(ValueError, match=r"its loop is no map. Set model.config.test_time_noise = 0"):
        load(model)


# ---- names, folders, tokenizers

@pytest.mark.parametrize("make", [albert, hrm_text])
def test_a_checkpoint_in_a_folder_is_the_model_that_was_saved(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "mine")
    looped = load(tmp_path / "mine")
    assert looped.name == "mine"
    assert looped.provenance["sha256"] == weights_hash(model)
    assert looped.provenance["source"] == str(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"mine has no tokenizer here. Pass prompts as lists of token numbers"):
        looped.encode("text")
    assert load(tmp_path / "mine", tokenizer=lambda text: [1, 2]).encode("text") == [1, 2]
    assert load(tmp_path / "mine", name="yours").name == "yours"


def test_nanos_load_by_name_folder_and_object():
    from dynloop.nano.shipped import _HERE
    assert load("nano-settles").name == "nano-settles"
    assert load(_HERE / "checkpoints" / "nano-settles").provenance["sha256"] == \
        load("nano-settles").provenance["sha256"]
    looped = nano("nano-settles")
    assert load(looped) is looped


def test_what_is_no_looped_model_is_refused_in_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a shipped one"):
        load("nano-nowhere")
    with pytest.raises(FileNotFoundError, match="neither a shipped one"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"Linear is of no known family .*hooked_block"):
        load(nn.Linear(2, 2))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="a model of type 'bert', of no known family"):
        load(tmp_path)


@pytest.mark.parametrize("family", [name for name, home in families() if hasattr(home, "SIGNS")])
def test_another_familys_model_is_refused_with_its_name(family):
    adapter = getattr(importlib.import_module(f"dynloop.models.{family}"), family)
    other = "parcae" if family != "parcae" else "huginn"
    with pytest.raises(ValueError, match=f"is no {family} model, .*It looks like {other}"):
        adapter(built(other)[0])
    with pytest.raises(ValueError, match=r"no .* model, .*hooked_block"):
        adapter(nn.Linear(2, 2))


@pytest.mark.parametrize("family", ["hrm", "trm"])
def test_families_whose_checkpoints_need_their_own_code_say_so(family):
    adapter = getattr(importlib.import_module(f"dynloop.models.{family}"), family)
    with pytest.raises(ValueError, match=f"{family} takes a model object; got 'somewhere'"):
        adapter("somewhere")


@pytest.mark.parametrize(("family", "missing"), [("parcae", "parcae_lm"), ("looped_nanochat", "nanochat")])
def test_a_missing_package_of_a_familys_own_is_named(family, missing, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    adapter = getattr(importlib.import_module(f"dynloop.models.{family}"), family)
    with pytest.raises(ImportError, match=r"opens with .* own package"):
        adapter(str(tmp_path))


def test_without_transformers_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (tmp_path / "config.json").write_text('{"model_type": "ouro"}')
    with pytest.raises(ImportError, match=r"pip install dynloop\[transformers\]"):
        load(tmp_path)


def test_code_that_comes_with_a_checkpoint_runs_only_when_trusted(tmp_path):
    pytest.importorskip("transformers")
    ran = tmp_path / "ran"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ouro", "auto_map": {
        "AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}))
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(tmp_path)
    assert not ran.exists()


OLD_CODE = """
import types
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

class Config(PretrainedConfig):
    model_type = "ouro"
    def __init__(self, hidden_size=8, vocab_size=13, num_hidden_layers=2, num_attention_heads=2, rope_theta=1e4, **kw):
        self.hidden_size, self.vocab_size, self.num_hidden_layers = hidden_size, vocab_size, num_hidden_layers
        self.num_attention_heads, self.rope_theta = num_attention_heads, rope_theta
        super().__init__(**kw)

class Layer(nn.Linear):
    attention_type = "full_attention"
    def forward(self, x, **kw):
        return x + torch.tanh(super().forward(x)).cumsum(1) / 8

class Rotary(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        table, self.scale = ROPE_INIT_FUNCTIONS["default"](config, None)
        self.register_buffer("inv_freq", table, persistent=False)
    def forward(self, x, positions):
        return positions, positions

class Inner(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.padding, self.total_ut_steps = config.pad_token_id, 3
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config.hidden_size, config.hidden_size) for _ in range(2))
        self.norm, self.early_exit_gate = nn.RMSNorm(config.hidden_size), nn.Linear(config.hidden_size, 1)
        self.rotary_emb = Rotary(config)

class Model(PreTrainedModel):
    config_class = Config
    _tied_weights_keys = ["lm_head.weight"]
    _supports_sdpa = True
    def __init__(self, config):
        super().__init__(config)
        self.model, self.lm_head = Inner(config), nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    def get_input_embeddings(self):
        return self.model.embed_tokens
    def get_output_embeddings(self):
        return self.lm_head
    def _init_weights(self, module):
        pass
    def forward(self, inputs_embeds=None, attention_mask=None, use_cache=None, exit_at_step=None):
        x = inputs_embeds
        for _ in range(self.model.total_ut_steps):
            for layer in self.model.layers:
                x = layer(x)
            x = self.model.norm(x)
        return types.SimpleNamespace(logits=self.lm_head(x))
"""


@pytest.mark.parametrize("tied", [True, False])
def test_code_of_transformers_4_that_comes_with_a_checkpoint_runs_with_5(tied, tmp_path, monkeypatch):
    """Tied weights in a list, no post_init(), rotary embedding "default", its table saved nowhere, no padding token."""
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "cache"), *__import__("sys").path])
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    monkeypatch.delitem(ROPE_INIT_FUNCTIONS, "default", raising=False)
    folder = tmp_path / f"old_{tied}"
    folder.mkdir()
    (folder / "own.py").write_text(OLD_CODE)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "ouro", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
        "tie_word_embeddings": tied}))
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (13, 8), "model.layers.0.weight": (8, 8), "model.layers.0.bias": (8,),
              "model.layers.1.weight": (8, 8), "model.layers.1.bias": (8,), "model.norm.weight": (8,),
              "model.early_exit_gate.weight": (1, 8), "model.early_exit_gate.bias": (1,),
              **({} if tied else {"lm_head.weight": (13, 8)})}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    looped = load(folder, trust_remote_code=True)
    state = looped.module.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    if tied:
        assert torch.equal(state["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert looped.provenance["family"] == "ouro"
    assert looped.name == folder.name
    rotary = looped.module.model.rotary_emb  # in no checkpoint: transformers 5 leaves there what the memory held
    torch.testing.assert_close(rotary.inv_freq, torch.tensor([1.0, 0.01]))  # theta^(-2i/4)
    rotary.inv_freq = torch.tensor([0.0, 4e-41])
    with pytest.raises(ValueError, match="rotary positions of this Model"):
        load(looped.module)


def test_a_tokenizer_is_a_function_or_has_encode():
    @dataclasses.dataclass
    class Tokenizer:
        def encode(self, text):
            return [len(text)]
    model = nn.Linear(1, 1)
    assert encoder(model, Tokenizer(), "it")("abc") == [3]
    assert encoder(model, lambda text: torch.tensor([1, 2]), "it")("abc") == [1, 2]
    with pytest.raises(ValueError, match="it has no tokenizer here"):
        encoder(model, None, "it")("abc")


def test_what_is_changed_for_a_while_is_put_back_or_taken_away():
    class Thing:
        shared = 1
        told = property(lambda self: self._told, lambda self, value: setattr(self, "_told", value))

        def __init__(self):
            self.told = 1
    thing = types.SimpleNamespace(here=1)
    with contextlib.suppress(KeyError), temporarily(thing, here=2, new=3):
        assert (thing.here, thing.new) == (2, 3)
        raise KeyError
    assert vars(thing) == {"here": 1}
    own = Thing()
    with temporarily(own, shared=2, told=2):
        assert (own.shared, own.told) == (2, 2)
    assert vars(own) == {"_told": 1}
    assert (own.shared, own.told) == (1, 1)
