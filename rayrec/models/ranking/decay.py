"""Weights of a session's items by their distance from its end."""

from enum import Enum

import numpy as np
import numpy.typing as npt

from rayrec.sessions import Sessions

FloatArray = npt.NDArray[np.float64]


class Decay(Enum):
    """With i the distance from the session's end, 1 for the newest item, and n the session's length.

    The forms and their bounds are those that https://arxiv.org/abs/2402.01339 searched over. ``SCALING_LINEAR`` is also
    "div", the default of V-SKNN in session-rec, the code of https://arxiv.org/abs/1803.09587.
    """

    NONE = "none"  # 1
    CONSTANT_LINEAR = "constant_linear"  # max(1e-5, 1 - (i - 1) / 10)
    SCALING_LINEAR = "scaling_linear"  # 1 - (i - 1) / n
    SCALING_QUADRATIC = "scaling_quadratic"  # its square
    LOG = "log"  # 1 / (ln i + 1)
    HARMONIC = "harmonic"  # 1 / i
    HARMONIC_SQUARED = "harmonic_squared"  # 1 / i^2

    def weights(self, sessions: Sessions) -> FloatArray:
        """The weight of each event, above 0 and at most 1; shape (events,)."""
        length = np.repeat(sessions.lengths, sessions.lengths)
        before = np.repeat(sessions.offsets[1:], sessions.lengths) - np.arange(len(sessions.items)) - 1  # i - 1
        match self:
            case Decay.NONE:
                weights = np.ones(len(before))
            case Decay.CONSTANT_LINEAR:
                weights = np.maximum(1e-5, 1 - before / 10)
            case Decay.SCALING_LINEAR:
                weights = 1 - before / length
            case Decay.SCALING_QUADRATIC:
                weights = (1 - before / length) ** 2
            case Decay.LOG:
                weights = 1 / (np.log(before + 1) + 1)
            case Decay.HARMONIC:
                weights = 1 / (before + 1)
            case Decay.HARMONIC_SQUARED:
                weights = 1 / (before + 1) ** 2
        return weights
