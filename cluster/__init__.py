"""Deployment of runs on one machine or many."""
