"""Training: loop, state, step, optimizer, sharding, checkpoints."""
