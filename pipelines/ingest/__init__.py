"""Data: prepared sets on disk, and the stream of batches drawn from them."""
