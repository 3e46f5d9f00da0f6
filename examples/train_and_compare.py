"""Train on the built-in support rows, compare with the base, ask one question. As in a notebook.

python examples/train_and_compare.py
"""

from __future__ import annotations

import inlay
from inlay.data import example_tasks

ROWS = example_tasks()["customer_support"]

CONFIG = {
    "preset": "support",
    "model": {"base_model": "builtin:nano"},
    "data": {"train": str(ROWS.train), "eval": str(ROWS.heldout)},
    "train": {"epochs": 2},
    "eval": {"max_rows": 50, "max_new_tokens": 64},
}

if __name__ == "__main__":
    run = inlay.train(CONFIG)
    comparison = inlay.compare(run)
    loss = comparison.metrics["loss"]
    print(f"{comparison.verdict}: {loss.base:.3f} to {loss.other:.3f} [{loss.low:+.3f}, {loss.high:+.3f}]")

    answerer = inlay.load(run)
    print(answerer.generate("My parcel is late. What can I do?", temperature=0.0))
