"""RecTools' SASRecModel (https://rectools.readthedocs.io), some epochs at a time, for a benchmark.

Run as a program of its own by the Python of an environment that holds RecTools, which needs older packages than rayrec;
so nothing of rayrec is imported. Its argument is JSON: ``rows`` (a CSV file: user_id, item_id, datetime), ``loss``,
``negatives``, ``threads`` and the model's sizes. A line of input asks for so many epochs and is answered by a line of
JSON: the positions trained on, and the epochs' seconds without what RecTools prepares before.
"""

import json
import logging
import sys
import time
import warnings
from typing import Any

_COLUMNS = ["user_id", "item_id", "datetime"]


def main() -> None:
    """Train as each line of standard input asks."""
    import pandas as pd  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from pytorch_lightning import Callback, Trainer  # noqa: PLC0415
    from rectools.dataset import Dataset  # noqa: PLC0415
    from rectools.models import SASRecModel  # noqa: PLC0415

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    frame = pd.read_csv(asked["rows"])[_COLUMNS].assign(weight=1.0)
    spent: list[float] = []

    class Clock(Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            spent.append(time.perf_counter() - self.began)

    def trainer() -> Any:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        plain = {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1}
        return Trainer(max_epochs=1, callbacks=[Clock()], **quiet, **plain)

    model = SASRecModel(
        n_factors=asked["width"],
        n_blocks=asked["blocks"],
        n_heads=asked["heads"],
        session_max_len=asked["max_len"],
        dropout_rate=asked["dropout"],
        lr=asked["lr"],
        batch_size=asked["batch"],
        loss=asked["loss"],
        n_negatives=asked["negatives"],
        epochs=1,
        dataloader_num_workers=0,
        get_trainer_func=trainer,
    )
    # A user's newest items but the first are targets, one position each.
    counts = frame.groupby("user_id").size().clip(upper=asked["max_len"] + 1) - 1
    dataset = Dataset.construct(frame)
    for line in sys.stdin:
        epochs = int(line)
        model.fit_partial(dataset, min_epochs=epochs, max_epochs=epochs)
        print(json.dumps({"done": epochs * int(counts.sum()), "seconds": sum(spent[-epochs:])}), flush=True)


if __name__ == "__main__":
    main()
