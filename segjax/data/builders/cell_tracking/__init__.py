"""Cell Tracking Challenge: cells in phase contrast and DIC microscopy."""
