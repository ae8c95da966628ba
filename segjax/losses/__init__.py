"""Loss functions; each returns a `SumCount`, so that the one division comes last."""
