"""A run that stands on a plateau: found by its losses, answered as configured, escaped from by branches.

`diagnose` reads the curve and does what `train.on_plateau` and `train.on_overfitting` set; `escape` plans the steps and learning
rates of the branches. `inlay.workflows.escape_plateau` trains and judges them.
"""
