"""What a run shows: pictures of labels, curves, the page `report.html` and the terminal."""
