"""An hour with a GPU: what to run there, in which order, and how its numbers come back."""
