"""ADE20K: scenes, with segments of 100 classes of things and 50 of stuff."""
