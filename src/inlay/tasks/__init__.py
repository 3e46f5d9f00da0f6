"""Tasks that a base is trained for. A task loads the model, encodes rows and computes the loss."""
