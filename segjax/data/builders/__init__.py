"""TFDS builders, one folder for each data set, prepared and read back without TensorFlow."""
