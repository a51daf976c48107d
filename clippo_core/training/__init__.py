"""The state of a training run, which a checkpoint saves, and one step of it."""
