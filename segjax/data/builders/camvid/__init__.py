"""CamVid: road scenes, in the split of SegNet."""
