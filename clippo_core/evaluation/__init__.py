"""Evaluations as pure functions of arrays."""
