"""What a run shows: overlays of labels, curves, the page `report.html` and the terminal."""
