"""Scenes: drawn pictures, annotated for semantic, instance and panoptic segmentation."""
