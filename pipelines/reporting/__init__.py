"""Results of checkpoints side by side, with the paper's numbers."""
