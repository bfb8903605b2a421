"""How many recurrences does each token need?"""

from __future__ import annotations

import numpy as np

from dynloop.analyzers import convergence_time
from dynloop.measurement import Measurement
from dynloop.settings import check_whole
from dynloop.trajectories import Trajectories


def recurrences_needed(trajectories: Trajectories, *, tolerance: float = 1e-2, relative_to: str = "limit",
                       first_recurrence: int = 1, budget: int | None = None) -> Measurement:
    """Recurrences after which a token's state stays within a tolerance of its limit, and what a fixed budget wastes.

        needed = first_recurrence + min { t : ||x[s] - x[T-1]|| <= tolerance ||x[T-1]|| for all s >= t }

    The question, and every doubt about it, is that of `convergence_time`.

    Args:
        trajectories: orbits, recorded well beyond the recurrences that the model is run with: their last state stands
            for the limit.
        tolerance, relative_to: as in `convergence_time`; by default one part in a hundred of the limit's norm.
        first_recurrence: recurrences after which the first recorded state stands: 1 in what `capture` records, 0 where
            the initial state was recorded, too.
        budget: recurrences that the model is run with; by default those recorded.

    Returns:
        `recurrences` (n_orbits,), NaN where not `FOUND`; `saved`, budget - recurrences, below 0 where the budget is too
        small; `saved_share`, saved over the budget. Outcomes as in `convergence_time`.

    Raises:
        ValueError: settings.

    Misleads:
        No rule that looks at the states so far knows when this is: it is what an oracle would save, and a bound for
        every exit rule (`exit_rule`). A mean over the orbits that converged is biased low when others did not: report
        their share beside it. Tokens of one prompt leave together or not at all where the implementation batches them.

    Source:
        As `convergence_time`.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.advice import recurrences_needed
        >>> orbits = Trajectories(1 + 0.5 ** np.arange(1, 65)[None, :, None] * np.ones((1, 1, 16)))
        >>> recurrences_needed(orbits).values  # 0.5^7 < 1e-2
        array([7.])
    """
    check_whole("first_recurrence", first_recurrence, 0, "0 (the initial state was recorded) or more (1 by default)")
    budget = trajectories.n_steps - 1 + first_recurrence if budget is None else budget
    check_whole("budget", budget, 1, "a whole number of at least 1 recurrence")
    found = convergence_time(trajectories, tolerance=tolerance, relative_to=relative_to)
    needed = found["time"] + first_recurrence
    saved = budget - needed
    return Measurement("recurrences_needed", {"recurrences": needed, "saved": saved, "saved_share": saved / budget},
                       found.outcomes, units={"recurrences": "recurrences", "saved": "recurrences"},
                       settings={"tolerance": tolerance, "relative_to": relative_to,
                                 "first_recurrence": first_recurrence, "budget": budget},
                       labels={name: np.asarray(values) for name, values in found.labels.items()})
