"""Preparation of data sets: one module each, all writing the same shards."""
