"""Penn-Fudan: pedestrians, one mask each."""
