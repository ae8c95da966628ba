"""Speed of segjax beside its peers: see `run.py`."""
