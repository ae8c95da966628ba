"""ADE20K: scenes, with one of 150 classes for each pixel."""
