"""What a contract is, and how a subject is held to several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Contract:
    """A promise, how to hold somebody to it, and what to do where it is broken.

    Attributes:
        promise: what must be so, as the end of "... must".
        advice: what to do, as a sentence.
        check: raises AssertionError with what is so instead.
    """

    promise: str
    advice: str
    check: Callable[[Any], None]


def hold(name: str, subject: Any, contracts: Mapping[str, Contract], only: Sequence[str] | None) -> None:
    """Hold a subject to its contracts, all or `only` some, in order.

    Raises:
        AssertionError: the first that is broken.
        ValueError: there is no such contract.
    """
    if isinstance(only, str) or (only is not None and (not only or not set(only) <= set(contracts))):
        raise ValueError(f"only must be a list of some of {', '.join(contracts)}; got {only!r}. None for all.")
    for key in contracts if only is None else only:
        contract = contracts[key]
        try:
            contract.check(subject)
        except Exception as error:
            told = str(error).strip() if isinstance(error, AssertionError) else \
                f"it raised {type(error).__name__}: {error}"
            raise AssertionError(f"{name} breaks the contract {key!r}: it must {contract.promise}; but "
                                 f"{told.rstrip('.')}. {contract.advice}") from error


def claim(so: Any, instead: str) -> None:
    """Raise AssertionError with what is so instead."""
    if not so:
        raise AssertionError(instead)


def differ(a: Any, b: Any, where: str = "") -> str:
    """Where two nests of tensors, arrays, lists and mappings differ first, in words; "" if nowhere."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        alike = a.shape == b.shape and a.dtype == b.dtype and \
            (torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all()))
        return "" if alike else where or "the values"
    if isinstance(a, np.ndarray):
        return "" if isinstance(b, np.ndarray) and np.array_equal(a, b) else where
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where} ({', '.join(map(str, sorted(a.keys() ^ b.keys(), key=str)))})"
        return next((told for key in a if (told := differ(a[key], b[key], f"{where} {key}".strip()))), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return where
        return next((told for one, other in zip(a, b, strict=True) if (told := differ(one, other, where))), "")
    return "" if a == b else where or f"{a!r} and {b!r}"
