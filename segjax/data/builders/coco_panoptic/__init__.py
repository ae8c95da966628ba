"""COCO panoptic segmentation, and any data set in its format."""
