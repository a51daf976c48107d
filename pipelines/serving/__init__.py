"""A page to try a model, served by Ray Serve."""
