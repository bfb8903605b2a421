"""The small looped decoder: prelude, looped block, coda, with every switch that the literature varies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from dynloop.nano.config import NanoConfig

VOCABULARY = 256  # bytes


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions (Su et al. 2021) on x (batch, heads, tokens, head width)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


@dataclasses.dataclass(frozen=True)
class Context:
    """What stays fixed while the loop runs: embedded input (batch, tokens, width) and rotary tables."""

    embedded: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, context.cosine, context.sine), _rotate(k, context.cosine, context.sine)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Layer(nn.Module):
    """One transformer layer; `norm` says where the norms sit (see NanoConfig)."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = config.norm
        self.attention = Attention(width, config.n_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width, bias=False), nn.GELU(),
                                 nn.Linear(4 * width, width, bias=False))
        n_norms = 2 if config.norm == "pre" else 4
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(n_norms))

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        norms = self.norms
        if self.norm == "pre":
            x = x + self.attention(norms[0](x), context)
            return x + self.mlp(norms[1](x))
        if self.norm == "sandwich":
            x = x + norms[1](self.attention(norms[0](x), context))
            return x + norms[3](self.mlp(norms[2](x)))
        x = norms[1](x + self.attention(norms[0](x), context))
        return norms[3](x + self.mlp(norms[2](x)))


class NanoModel(nn.Module):
    """A byte-level decoder whose block is applied again and again: h <- F(h; e).

    The loop is open to analysis: `embed` gives the fixed context, `initial_state` a start, `step` applies the block
    once, `readout` gives logits; `forward` is nothing but these four.

    Example:
        >>> import torch
        >>> from dynloop.nano import NanoConfig, NanoModel
        >>> model = NanoModel(NanoConfig(width=16, n_heads=2), seed=0)
        >>> model(torch.tensor([list(b"import os")]), n_recurrences=3).shape
        torch.Size([1, 9, 256])
    """

    def __init__(self, config: NanoConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width = config.width
        n_block = config.n_block if config.looped else config.n_block * config.n_recurrences
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the processor alone
            self.embedding = nn.Embedding(VOCABULARY, width)
            self.prelude = nn.ModuleList(Layer(config) for _ in range(config.n_prelude))
            self.adapter = nn.Linear(2 * width, width, bias=False) if config.injection == "linear" else None
            self.block = nn.ModuleList(Layer(config) for _ in range(n_block))
            self.loop_norm = nn.RMSNorm(width, eps=1e-6) if config.loop_norm else nn.Identity()
            self.coda = nn.ModuleList(Layer(config) for _ in range(config.n_coda))
            self.final_norm = nn.RMSNorm(width, eps=1e-6)
            self.head = nn.Linear(width, VOCABULARY, bias=False)
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=module.weight.shape[-1] ** -0.5)

    @property
    def n_recurrences(self) -> int:
        """Recurrences used in training, and by `forward` unless told otherwise."""
        return self.config.n_recurrences if self.config.looped else 1

    def embed(self, tokens: torch.Tensor) -> Context:
        """Run the prelude on tokens (batch, tokens) of whole numbers below 256."""
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens must have shape (batch, tokens) with at least one token; got "
                             f"{tuple(tokens.shape)}. One prompt? Pass tokens[None].")
        weight = self.embedding.weight
        half = self.config.width // self.config.n_heads // 2
        frequency = 10_000.0 ** -(torch.arange(half, device=weight.device, dtype=torch.float64) / half)
        angle = torch.arange(tokens.shape[1], device=weight.device, dtype=torch.float64)[:, None] * frequency
        x = self.embedding(tokens)
        context = Context(x, angle.cos().to(weight.dtype), angle.sin().to(weight.dtype))
        for layer in self.prelude:
            x = layer(x, context)
        return dataclasses.replace(context, embedded=x)

    def initial_state(self, context: Context, *, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """The state before the first recurrence, (batch, tokens, width).

        A random start draws each prompt's numbers from its own seed, on the CPU, so that neither the batch nor the
        device changes them.
        """
        embedded = context.embedded
        if self.config.initial_state == "input":
            return embedded
        seeds = range(embedded.shape[0]) if seeds is None else seeds
        if len(seeds) != embedded.shape[0]:
            raise ValueError(f"one seed a prompt is needed: got {len(seeds)} seeds for {embedded.shape[0]} prompts.")
        rows = [torch.randn(embedded.shape[1:], generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        return torch.stack(rows).to(embedded)

    def step(self, state: torch.Tensor, context: Context) -> torch.Tensor:
        """Apply the looped block once: (batch, tokens, width) -> the same shape."""
        if self.adapter is not None:
            state = self.adapter(torch.cat((state, context.embedded), dim=-1))
        elif self.config.injection == "additive":
            state = state + context.embedded
        for layer in self.block:
            state = layer(state, context)
        return self.loop_norm(state)

    def readout(self, state: torch.Tensor, context: Context) -> torch.Tensor:
        """Coda, final norm and head: logits (batch, tokens, 256)."""
        for layer in self.coda:
            state = layer(state, context)
        return self.head(self.final_norm(state))

    def forward(self, tokens: torch.Tensor, *, n_recurrences: int | None = None,
                initial_state: torch.Tensor | None = None, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Logits (batch, tokens, 256) after `n_recurrences` applications of the block (default: as trained)."""
        n_recurrences = self.n_recurrences if n_recurrences is None else n_recurrences
        if n_recurrences < 1:
            raise ValueError(f"n_recurrences must be at least 1; got {n_recurrences}.")
        if not self.config.looped and n_recurrences != 1:
            raise ValueError(f"the feed-forward control runs its layers once; got n_recurrences={n_recurrences}. "
                             "Use a looped model, or n_recurrences=1.")
        context = self.embed(tokens)
        state = self.initial_state(context, seeds=seeds) if initial_state is None else initial_state
        for _ in range(n_recurrences):
            state = self.step(state, context)
        return self.readout(state, context)


def model_hash(model: NanoModel) -> str:
    """SHA-256 over the configuration and every weight: two models are the same model when these agree."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.config), sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
