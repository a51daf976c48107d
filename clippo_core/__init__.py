"""The computations of CLIPPO: arrays and tensors in, arrays and tensors out.

Ray, MLflow, process groups, environment variables and the clock have no place here; `pipelines`
composes these parts into runs. Importing a module of this package has no effect.
"""
