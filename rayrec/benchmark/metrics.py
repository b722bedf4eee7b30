"""AUC and UAUC of many rows against a loop over users."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from rayrec.metrics.pointwise import auc, uauc

_TOLERANCE = 1e-12


@dataclass
class MetricRows:
    """Generated predictions; what both sides found is compared too."""

    user: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    found: tuple[float, float] | None = None

    @classmethod
    def draw(cls, rows: int, users: int) -> "MetricRows":
        random = np.random.default_rng(0)
        label = random.integers(0, 2, rows)
        score = np.clip(random.normal(0.45 + 0.1 * label, 0.2), 0, 1).round(4)  # ties, as real scores have
        return cls(random.integers(0, users, rows), label, score)

    def ours(self, number: int) -> int:
        self.found = auc(self.label, self.score), uauc(self.user, self.label, self.score)[0]
        return len(self.label)

    def groupby(self, number: int) -> int:
        frame = pd.DataFrame({"user": self.user, "label": self.label, "score": self.score})
        each = [
            roc_auc_score(rows["label"], rows["score"])
            for _, rows in frame.groupby("user")
            if rows["label"].nunique() == 2
        ]
        expected = roc_auc_score(self.label, self.score), float(np.mean(each))
        if self.found is None or np.abs(np.subtract(self.found, expected)).max() >= _TOLERANCE:
            raise ArithmeticError(f"AUC and UAUC are {self.found} here and {expected} by scikit-learn")
        return len(self.label)
