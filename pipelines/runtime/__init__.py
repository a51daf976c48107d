"""The base of every command: Ray sessions, placement, storage, and checkpoints of runs."""
