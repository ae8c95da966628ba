"""Cityscapes panoptic segmentation."""
