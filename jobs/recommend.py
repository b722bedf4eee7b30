#!/usr/bin/env python3
"""Write the k best items for each session of a Parquet file, by a trained system of a run.

python jobs/recommend.py --run runs/ml100k-smollm2 --system sasrec --sessions sessions.parquet --out lists.parquet
"""

from typing import TYPE_CHECKING

from rayrec import cli, ending

if TYPE_CHECKING:
    from rayrec.recommendation.job import Order


def act(order: "Order") -> None:
    from rayrec.recommendation.job import recommend  # noqa: PLC0415  (torch and ray; --help stays quick)

    recommend(order)


if __name__ == "__main__":
    with ending.process():
        cli.main_for_recommendation(__doc__ or "", act)
