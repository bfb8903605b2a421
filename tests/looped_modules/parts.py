"""What the models are made of: a transformer layer, and the trace that they keep of their own loops."""

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, VOCABULARY = 16, 2, 31


class Layer(nn.Module):
    """Attention and a feed-forward net; `norm` is "pre" or "post". With a cache the keys and values of a slot grow."""

    def __init__(self, *, norm="pre", causal=True, width=WIDTH):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm_1, self.norm_2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.norm, self.causal = norm, causal

    def attend(self, x, mask, cache, slot):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if cache is not None:
            if slot in cache:
                k, v = torch.cat((cache[slot][0], k), dim=2), torch.cat((cache[slot][1], v), dim=2)
            cache[slot] = (k, v)
        new, all_ = q.shape[2], k.shape[2]
        seen = torch.ones(new, all_, dtype=torch.bool, device=x.device)
        seen = seen.tril(all_ - new) if self.causal else seen
        if mask is not None:  # (batch, tokens), 0 for padding
            seen = seen & mask[:, None, None].bool()
            seen = seen | torch.eye(all_, dtype=torch.bool, device=x.device)[all_ - new:]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))

    def forward(self, x, mask=None, cache=None, slot=None):
        if self.norm == "pre":
            x = x + self.attend(self.norm_1(x), mask, cache, slot)
            return x + self.down(F.gelu(self.up(self.norm_2(x))))
        x = self.norm_1(x + self.attend(x, mask, cache, slot))
        return self.norm_2(x + self.down(F.gelu(self.up(x))))


class Traced(nn.Module):
    """A model that, while `trace` is a list, notes (recurrence, place in the recurrence, stack, state)."""

    trace = None

    def note(self, recurrence, place, stack, state):
        if self.trace is not None:
            self.trace.append((recurrence, place, stack, state.detach().clone()))
        return state


def seeded(module, seed=0):
    """Weights from a seed; the global random state stays as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim >= 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.7 * weight.shape[-1] ** -0.5)
    return module.eval()


def initialised(kind, *given, **settings):
    """A model, built without drawing from the global random state."""
    with torch.random.fork_rng(devices=[]):
        return seeded(kind(*given, **settings))
