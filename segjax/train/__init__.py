"""The training loop and what it needs: state, step, optimizer, sharding, checkpoints."""
