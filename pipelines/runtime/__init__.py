"""What every command stands on: Ray sessions, places for work, files, checkpoints of runs."""
