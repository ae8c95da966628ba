"""ADE20K: scenes, with a mask for each object of 100 classes."""
