"""COCO instance segmentation, and any data set in its format."""
