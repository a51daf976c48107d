"""Data sets: their manifests, reading any rows of them, and making them (`prepare`)."""
