"""Loss functions. Each returns a `SumCount`, which is divided once at the end."""
