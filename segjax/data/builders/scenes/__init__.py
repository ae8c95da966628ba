"""Scenes: synthetic images, annotated for semantic, instance and panoptic segmentation."""
