"""Jobs on clusters: Slurm, Google Kubernetes Engine, TPU VMs."""
