"""NYUDv2: indoor scenes, 40 classes."""
