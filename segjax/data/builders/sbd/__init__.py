"""SBD: the classes of PASCAL VOC on five times as many images."""
