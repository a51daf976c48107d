"""MLflow: one run per training run, the same one after every restart."""
