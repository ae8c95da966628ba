"""ISBI 2012: neuron membranes in electron microscopy."""
