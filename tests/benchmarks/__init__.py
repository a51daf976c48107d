"""Benchmarks: each a module that prints a table, and writes what it measured as JSON."""
