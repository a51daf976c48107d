"""CLIPPO as a pipeline: Ray Data feeds Ray Train, MLflow keeps the runs, evaluations are Ray tasks.

`python -m pipelines` lists the commands.
"""
