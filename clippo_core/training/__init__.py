"""Training: the state that a checkpoint saves, and one step of it."""
