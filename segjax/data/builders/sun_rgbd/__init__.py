"""SUN RGB-D: indoor scenes, 37 classes."""
