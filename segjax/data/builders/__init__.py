"""TFDS builders, one directory for each data set, prepared and read without TensorFlow."""
