"""Data sets: their manifests, the reading of any rows, and their preparation (`prepare`)."""
