"""A run that stands on a plateau: found by its losses, answered as configured, escaped from by branches.

`diagnose` reads the curve, `respond` does what `train.on_plateau` and `train.on_overfitting` say, `escape` plans the steps and
learning rates of the branches, `branch` starts one from a checkpoint. `inlay.workflows.escape_plateau` trains and judges them.
"""
