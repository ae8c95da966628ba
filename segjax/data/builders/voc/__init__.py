"""PASCAL VOC 2011 and 2012: objects of 20 classes in photographs."""
