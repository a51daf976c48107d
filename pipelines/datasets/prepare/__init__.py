"""Preparation of data sets: one module each, all writing the same shards.

Functions that prepare or write sets return the folders of these. They raise ConfigError if a
person's own or a public set is there already, SampleError if the data is missing, laid out
otherwise, or without one usable sample, and StorageError if the storage does not answer.
"""
