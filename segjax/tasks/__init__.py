"""What a network is trained to do, as pure functions that the training loop calls."""
