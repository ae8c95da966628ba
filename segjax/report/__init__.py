"""Output of a run: overlays, curves, the page `report.html` and the terminal."""
