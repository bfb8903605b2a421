"""Systems with known answers: one family a file, each with a tuple SYSTEMS; `systems()` finds them all.

Exact answers (closed forms) stand apart from reported ones (somebody's numerical run, with its source). This folder
imports dynloop, never the reverse, and is not in the wheel.
"""

import importlib
import pkgutil

from synthetic.system import System


def families() -> dict[str, tuple[System, ...]]:
    """Systems by family: every module of this folder that has SYSTEMS."""
    modules = {m.name: importlib.import_module(f"synthetic.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return {name: tuple(module.SYSTEMS) for name, module in modules.items() if hasattr(module, "SYSTEMS")}


def systems() -> dict[str, System]:
    """Every system by its name.

    Raises:
        ValueError: two systems share a name.
    """
    found: dict[str, System] = {}
    for family, members in families().items():
        for member in members:
            if member.name in found:
                raise ValueError(f"two systems are named {member.name!r}, one of them in synthetic/{family}.py.")
            found[member.name] = member
    return found


def system(name: str) -> System:
    """One system by its name.

    Raises:
        KeyError: there is none of that name.
    """
    known = systems()
    if name not in known:
        raise KeyError(f"no system {name!r}; there are {', '.join(known)}.")
    return known[name]
