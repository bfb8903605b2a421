"""What became of an orbit: every analyzer gives one of these for every orbit, never a bare NaN or -1."""

from __future__ import annotations

import enum


class Outcome(enum.Enum):
    """The result of asking one question of one orbit, with a sentence that says what happened and what to change.

    Example:
        >>> from dynloop import Outcome
        >>> Outcome.TOO_SHORT.sentence
        'The orbit has too few steps for this question; record more recurrences.'
    """

    FOUND = "found"
    NOT_FOUND = "not found"
    TOO_SHORT = "too short"
    NOT_FINITE = "not finite"
    AT_PRECISION_FLOOR = "at the precision floor"
    NOT_CONVERGED = "not converged"

    @property
    def sentence(self) -> str:
        """What happened, and what to change."""
        return _SENTENCES[self]


_SENTENCES = {
    Outcome.FOUND: "The question was answered.",
    Outcome.NOT_FOUND: "The orbit was long enough and finite, and what was asked for is not there.",
    Outcome.TOO_SHORT: "The orbit has too few steps for this question; record more recurrences.",
    Outcome.NOT_FINITE: "The orbit left the finite numbers before the question could be answered; "
                        "look for overflow, or compute in a wider dtype.",
    Outcome.AT_PRECISION_FLOOR: "The orbit reached the floor of its number format before enough steps could be "
                                "measured; compute in a wider dtype, or start farther away.",
    Outcome.NOT_CONVERGED: "It had not settled when the recording, or the number of evaluations allowed, ended; record "
                           "more recurrences, or allow more.",
}
