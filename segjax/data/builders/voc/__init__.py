"""PASCAL VOC 2011 and 2012: images with objects of 20 classes."""
