"""Tasks: the forward pass, losses, predictions and metrics that the training loop calls."""
