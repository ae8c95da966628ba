"""The training loop and what it needs: state, step, optimiser, sharding, checkpoints."""
