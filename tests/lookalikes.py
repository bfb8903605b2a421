"""Small modules that are called as the models of each family are: same attributes, same calls, nobody's code.

Their layers are ours. What matters is who calls whom, how often, with which arguments, and where the loop state is.
"""

import dataclasses
import types

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, VOCABULARY = 8, 13


class Mixer(nn.Module):
    """A layer: attention of two heads and a small network, with norms as told. With a cache, the keys and values of a
    slot grow."""

    def __init__(self, *, causal=True, post=False, bounded=False):
        super().__init__()
        self.causal, self.post = causal, post
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.net = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2))

    def mix(self, x, cache, slot):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if cache is not None:
            if slot in cache:
                k, v = (torch.cat((old, new), dim=2) for old, new in zip(cache[slot], (k, v), strict=True))
            cache[slot] = k, v
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal and q.shape[2] == k.shape[2])
        return self.out(mixed.transpose(1, 2).flatten(2))

    def apply(self, x, cache=None, slot=None):
        if self.post:
            x = self.norms[0](x + self.mix(x, cache, slot))
            return self.norms[1](x + self.net(x))
        x = x + self.mix(self.norms[0](x), cache, slot)
        return x + self.net(self.norms[1](x))


class InOrder(Mixer):
    """Called with the state first, and whatever else."""

    def forward(self, x, *args, grown=None, slot=None, **kwargs):
        return self.apply(x, grown, slot)


class ByName(Mixer):
    """Called by names alone."""

    def forward(self, *, hidden_states, cos_sin):
        return self.apply(hidden_states)


def layers(n, kind=InOrder, **settings):
    return nn.ModuleList(kind(**settings) for _ in range(n))


class Raven(nn.Module):
    """Huginn: adapter and block; `input_states`, `num_steps`; a norm before the coda."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(n_embd=WIDTH, mean_recurrence=4, test_time_noise=0, pad_token_id=None)
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(VOCABULARY, WIDTH), "prelude": layers(2, post=True),
            "adapter": nn.Linear(2 * WIDTH, WIDTH), "core_block": layers(3, post=True), "coda": layers(1, post=True),
            "ln_f": nn.RMSNorm(WIDTH)})
        self.lm_head, self.emb_scale = nn.Linear(WIDTH, VOCABULARY), WIDTH ** 0.5
        self.positions()

    def positions(self):
        self.register_buffer("freqs_cis", torch.zeros(1, 64, 1))

    def initialize_state(self, like, scale=1.0):
        return torch.randn_like(like)

    def core_block_forward(self, x, e, rotary, mask, cache, count, step):
        return self.core(self.transformer["adapter"](torch.cat((x, e), -1)), cache, count)

    def core(self, x, cache, count):
        for layer in self.transformer["core_block"]:
            count = count + 1
            x = layer(x, grown=cache, slot=int(count))
        return x, count

    def closing(self, x):
        return self.transformer["ln_f"](x)

    def iterate_forward(self, e, states, n, cache=None):
        x = self.initialize_state(e) if states is None else states.clone()
        count = torch.tensor(1)
        with torch.no_grad():
            for step in range(n):
                x, count = self.core_block_forward(x, e, None, None, cache, count, step)
        return self.closing(x)

    def forward(self, input_ids, input_states=None, num_steps=4, use_cache=False, past_key_values=None,
                cache_position=None):
        grown = {} if use_cache and past_key_values is None else past_key_values
        e = self.transformer["wte"](input_ids) * self.emb_scale
        for i, layer in enumerate(self.transformer["prelude"]):
            e = layer(e, grown=grown, slot=i)
        x = self.iterate_forward(e, input_states, num_steps, grown)
        for layer in self.transformer["coda"]:
            x = layer(x, grown=grown, slot=-1)
        return types.SimpleNamespace(logits=self.lm_head(self.transformer["ln_f"](x)).float(), past_key_values=grown)


class Retrofitted(Raven):
    """No norm before the coda; rotary positions from a module."""

    def positions(self):
        self.rotary_emb = nn.Module()
        self.rotary_emb.forward = lambda x, positions: (positions, positions)

    def closing(self, x):
        return x


class SkippingAdapter(Retrofitted):
    """Starts from the prelude's output, which the first recurrence takes without the adapter."""

    def __init__(self):
        super().__init__()
        self.config.initial_state_mode = "skip-adapter"

    def initialize_state(self, like, scale=1.0):
        return like

    def core_block_forward(self, x, e, rotary, mask, cache, count, step):
        return super().core_block_forward(x, e, rotary, mask, cache, count, step) if step else \
            self.core(x, cache, count)


class OuroStack(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.total_ut_steps = config, 4
        self.embed_tokens, self.layers = nn.Embedding(VOCABULARY, WIDTH), layers(3)
        for layer in self.layers:
            layer.attention_type = "full_attention"
        self.norm, self.early_exit_gate = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 1)
        self.rotary_emb = nn.Module()
        self.rotary_emb.forward = lambda x, positions: (positions, positions)


class Ouro(nn.Module):
    """The whole stack is the loop; the norm lies inside it; the count is an attribute; exits choose logits alone."""

    def __init__(self):
        super().__init__()
        from transformers import LlamaConfig
        self.config = LlamaConfig(hidden_size=WIDTH, num_hidden_layers=3, vocab_size=VOCABULARY,
                                  num_attention_heads=2, attn_implementation="sdpa")
        self.config.total_ut_steps = 4
        self.model, self.lm_head = OuroStack(self.config), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, inputs_embeds=None, attention_mask=None, use_cache=None, exit_at_step=None, past_key_values=None):
        x, states = inputs_embeds, []
        grown = {} if use_cache and past_key_values is None else past_key_values
        for r in range(self.model.total_ut_steps):
            for i, layer in enumerate(self.model.layers):
                x = layer(x, attention_mask=attention_mask["full_attention"], grown=grown, slot=(r, i))
            x = self.model.norm(x)
            states.append(x)
        return types.SimpleNamespace(logits=self.lm_head(states[1 if exit_at_step is None else exit_at_step]),
                                     past_key_values=grown)


class Nanochat(nn.Module):
    """Injection, block and a norm inside the loop; `warm_start_state`, `num_recur`."""

    def __init__(self, mode="inject_init_prelude"):
        super().__init__()
        self.config = types.SimpleNamespace(input_injection=mode, n_embd=WIDTH, vocab_size=VOCABULARY, n_prelude=1,
                                            train_recur_mean=4.0, train_recur_max=16)
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(VOCABULARY, WIDTH), "prelude": layers(1),
                                          "recur": layers(2), "coda": layers(1)})
        self.inject, self.lm_head = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.norm_emb, self.norm_recur, self.norm_final = (nn.RMSNorm(WIDTH) for _ in range(3))
        self.window_sizes = [(64, 0)] * 4
        self.register_buffer("cos", torch.ones(1, 64, 1, 2, dtype=torch.bfloat16), persistent=False)
        self.register_buffer("sin", torch.zeros(1, 64, 1, 2, dtype=torch.bfloat16), persistent=False)

    def _state_transfer(self, e, s=None, warm_start_state=None):
        if s is None:
            s = warm_start_state
            if s is None:
                s = torch.randn_like(e) * WIDTH ** -0.5 if self.config.input_injection == "inject_init_random" else e
        return s if self.config.input_injection == "passthrough" else self.inject(torch.cat((e, s), -1))

    def _predict(self, s, tables):
        for layer in self.transformer["coda"]:
            s = layer(s, tables, (64, 0), None, None)
        return 15 * torch.tanh(self.lm_head(self.norm_final(s)) / 15)

    def forward(self, idx, num_recur=4, warm_start_state=None):
        tables = self.cos[:, :idx.shape[1]], self.sin[:, :idx.shape[1]]
        e, s = self.norm_emb(self.transformer["wte"](idx)), None
        for layer in self.transformer["prelude"]:
            e = layer(e, tables, (64, 0), None, None)
        for _ in range(num_recur):
            x = self._state_transfer(e, s=s, warm_start_state=warm_start_state)
            for layer in self.transformer["recur"]:
                x = layer(x, tables, (64, 0), None, None)
            s = self.norm_recur(x)
        return self._predict(s, tables), s


@dataclasses.dataclass
class Inner:
    z_H: torch.Tensor
    z_L: torch.Tensor


@dataclasses.dataclass
class Carry:
    inner_carry: Inner
    steps: torch.Tensor
    halted: torch.Tensor
    current_data: dict


class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = layers(2, ByName, causal=False, post=True)

    def forward(self, hidden_states, input_injection, **kwargs):
        hidden_states = hidden_states + input_injection
        for layer in self.layers:
            hidden_states = layer(hidden_states=hidden_states, **kwargs)
        return hidden_states


class Reasoner(nn.Module):
    def __init__(self, config, two):
        super().__init__()
        self.config, self.forward_dtype, self.puzzle_emb_len = config, torch.float32, 2
        self.embed_tokens, self.puzzle_emb = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(4, 2 * WIDTH)
        self.L_level = Level()
        if two:
            self.H_level = Level()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY)
        self.register_buffer("H_init", torch.randn(WIDTH))
        self.register_buffer("L_init", torch.randn(WIDTH))

    def _input_embeddings(self, inputs, puzzle_identifiers):
        return torch.cat((self.puzzle_emb(puzzle_identifiers).unflatten(-1, (2, WIDTH)), self.embed_tokens(inputs)), 1)

    def forward(self, carry, batch):
        x = self._input_embeddings(batch["inputs"], batch["puzzle_identifiers"])
        high = self.H_level if hasattr(self, "H_level") else self.L_level
        z_h, z_l = carry.z_H, carry.z_L
        for _ in range(self.config.H_cycles):
            for _ in range(self.config.L_cycles):
                z_l = self.L_level(z_l, z_h + x, cos_sin=None)
            z_h = high(z_h, z_l, cos_sin=None)
        return Inner(z_h.detach(), z_l.detach()), self.lm_head(z_h)[:, 2:]


class TwoTimescales(nn.Module):
    """HRM and TRM: two states, nested loops, an outer loop that carries on and starts halted rows again."""

    def __init__(self, two=True):
        super().__init__()
        self.config = types.SimpleNamespace(
            H_cycles=2, L_cycles=3, seq_len=5, vocab_size=VOCABULARY, puzzle_emb_ndim=2 * WIDTH, hidden_size=WIDTH,
            num_puzzle_identifiers=4, halt_max_steps=2)
        self.inner = Reasoner(self.config, two)

    def initial_carry(self, batch):
        n, tokens = batch["inputs"].shape
        empty = torch.full((n, tokens + 2, WIDTH), torch.nan)
        return Carry(Inner(empty, empty), torch.zeros(n, dtype=torch.int32), torch.ones(n, dtype=torch.bool),
                     {name: torch.zeros_like(given) for name, given in batch.items()})

    def forward(self, carry, batch):
        fresh = carry.halted[:, None, None]
        states = Inner(torch.where(fresh, self.inner.H_init, carry.inner_carry.z_H),
                       torch.where(fresh, self.inner.L_init, carry.inner_carry.z_L))
        data = {name: torch.where(carry.halted.view(-1, *[1] * (given.ndim - 1)), given, carry.current_data[name])
                for name, given in batch.items()}
        states, logits = self.inner(states, data)
        steps = torch.where(carry.halted, 0, carry.steps) + 1
        return Carry(states, steps, steps >= self.config.halt_max_steps, data), {"logits": logits}


class Parcae(nn.Module):
    """A diagonal injection; the layers look tokens up on the model; no argument for the initial state."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(recurrent_embedding_dimension=WIDTH, mean_recurrence=4, prelude_norm=True,
                                            sampling_scheme="poisson", state_init="normal")
        inject = nn.Bilinear(1, 1, 1)  # with parameters, called with two arguments
        inject.forward = lambda x, e: 0.5 * x + 0.3 * e
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(VOCABULARY, WIDTH), "prelude": layers(1), "adapter": inject, "core_block": layers(2),
            "C": nn.Linear(WIDTH, WIDTH), "coda": layers(1), "ln_f": nn.RMSNorm(WIDTH),
            "ln_prelude": nn.RMSNorm(WIDTH)})
        self.value_embeds = nn.ModuleDict({"1": nn.Embedding(VOCABULARY, WIDTH)})
        self.lm_head, self.emb_scale = nn.Linear(WIDTH, VOCABULARY), 1.0
        self.register_buffer("freqs_cis", torch.zeros(1, 64, 1))

    def initialize_state(self, like):
        return torch.randn(like.shape, dtype=like.dtype, device=like.device)

    def core_block_forward(self, x, e, rotary, mask, step, total):
        x = self.transformer["adapter"](x, e)
        for layer in self.transformer["core_block"]:
            x = layer(x + self.value_embeds["1"](self._current_input_ids), rotary, mask)
        return x

    def iterate_forward(self, e, rotary, mask, steps):
        x = self.initialize_state(e)
        for step in range(int(steps.sum())):
            x = self.core_block_forward(x, e, rotary, mask, torch.tensor(step), steps.sum())
        return x, steps[0], steps[1], x

    def forward(self, input_ids, return_logits=False, num_steps_pair=None):
        rotary = self.freqs_cis[:, :input_ids.shape[1]]
        e = self.transformer["wte"](input_ids)
        self._current_input_ids = input_ids
        for number, layer in enumerate(self.transformer["prelude"]):
            e = layer(e, rotary, None, ve=number)
        x, *_ = self.iterate_forward(self.transformer["ln_prelude"](e), rotary, None, num_steps_pair)
        x = self.transformer["C"](x)
        for layer in self.transformer["coda"]:
            x = layer(x, rotary, None)
        return {"logits": self.lm_head(self.transformer["ln_f"](x)) if return_logits else None}


MODELS = {
    "huginn": ("huginn", Raven), "retrofit": ("retrofit", Retrofitted),
    "retrofit, skipping": ("retrofit", SkippingAdapter),
    "ouro": ("ouro", Ouro), "looped_nanochat": ("looped_nanochat", Nanochat),
    "looped_nanochat, random": ("looped_nanochat", lambda: Nanochat("inject_init_random")),
    "looped_nanochat, passthrough": ("looped_nanochat", lambda: Nanochat("passthrough")),
    "hrm": ("hrm", TwoTimescales), "trm": ("trm", lambda: TwoTimescales(two=False)), "parcae": ("parcae", Parcae)}
