"""Evaluations of checkpoints, as Ray tasks beside training or on their own."""
