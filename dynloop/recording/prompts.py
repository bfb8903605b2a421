"""From what a caller calls prompts to lists of token numbers, unpadded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynloop.models import LoopedModel


def encode_prompts(model: LoopedModel, inputs: Any) -> list[list[int]]:
    """Token numbers of every prompt.

    Args:
        model: whose prompts they are.
        inputs: texts or sequences of token numbers; or what a tokenizer of transformers gives for a padded batch, a
            mapping with `input_ids` and `attention_mask`: its padding is taken off.

    Raises:
        ValueError: no prompts, no tokens of this model, or padding that cannot be told from them.
    """
    if isinstance(inputs, Mapping) or (hasattr(inputs, "keys") and "input_ids" in inputs):
        inputs = _without_padding(inputs)
    if isinstance(inputs, str | bytes) or not hasattr(inputs, "__len__") or not len(inputs):
        empty = hasattr(inputs, "__len__") and not len(inputs)
        raise ValueError("inputs must be a list of prompts (texts, or sequences of token numbers) with at least one; "
                         f"got {'none' if empty else type(inputs).__name__}. One prompt? Pass [prompt].")
    return [_encode(model, number, given) for number, given in enumerate(inputs)]


def _encode(model: LoopedModel, number: int, given: Any) -> list[int]:
    if not isinstance(given, str) and not hasattr(given, "__iter__"):
        raise ValueError(f"prompt {number} is {given!r}; a prompt is a text or a sequence of token numbers. One "
                         "prompt? Pass [prompt].")
    tokens = model.encode(given) if isinstance(given, str) else list(given)
    wrong = [t for t in tokens if not _is_token(t, model.vocabulary)]
    if wrong:
        raise ValueError(f"prompt {number} holds {wrong[0]!r}; tokens of {model.name} are whole numbers from 0 to "
                         f"{model.vocabulary - 1}.")
    tokens = [int(t) for t in tokens]
    if not tokens:
        raise ValueError(f"prompt {number} is empty; every prompt needs at least one token. Leave it out.")
    if model.padding is not None and model.padding in (tokens[0], tokens[-1]):
        masked = "the model does not see its mask" if model.mask == "ignored" else "they would be recorded as tokens"
        raise ValueError(f"prompt {number} begins or ends with padding (token {model.padding}); {masked}. Pass the "
                         "prompts without padding: those of one length run together by themselves.")
    if model.n_tokens is not None and len(tokens) != model.n_tokens:
        raise ValueError(f"prompt {number} has {len(tokens)} tokens; {model.name} takes prompts of {model.n_tokens}.")
    return tokens


def _is_token(value: Any, vocabulary: int) -> bool:
    try:
        return not isinstance(value, bool) and int(value) == value and 0 <= value < vocabulary
    except (TypeError, ValueError, OverflowError):  # a text, nan, infinity
        return False


def _without_padding(batch: Any) -> Sequence[Any]:
    rows = [list(row) for row in batch["input_ids"]]
    mask = batch.get("attention_mask", None)
    if mask is None:
        if len({len(row) for row in rows}) <= 1 and len(rows) > 1:
            raise ValueError("input_ids of several prompts need their attention_mask: without it padding cannot be "
                             "told from tokens. Pass both, or a list of unpadded prompts.")
        return rows
    prompts = []
    for number, (row, kept) in enumerate(zip(rows, mask, strict=True)):
        seen = [i for i, one in enumerate(kept) if int(one)]
        if seen and seen[-1] - seen[0] + 1 != len(seen):
            raise ValueError(f"the attention_mask of prompt {number} has a hole; only padding at its ends can be taken "
                             "off. Pass the prompts without it.")
        prompts.append([row[i] for i in seen])
    return prompts


def positions_of(tokens: Sequence[int] | None, length: int, prompt: int) -> list[int]:
    """The selected positions of a prompt, ascending, each once.

    Raises:
        ValueError: one of them does not exist.
    """
    if tokens is None:
        return list(range(length))
    chosen = sorted({t + length if t < 0 else t for t in tokens})
    if not chosen or chosen[0] < 0 or chosen[-1] >= length:
        raise ValueError(f"tokens {list(tokens)} do not all exist in prompt {prompt}, which has {length}. Choose "
                         "positions below the shortest prompt's length, or negative ones from its end.")
    return chosen
