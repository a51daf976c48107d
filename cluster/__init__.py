"""Deployment: what surrounds a run on one machine or many."""
