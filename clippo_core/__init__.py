"""CLIPPO's computations: arrays and tensors in, arrays and tensors out.

No Ray, no MLflow, no process groups, no environment variables and no clock in here;
`pipelines` composes these parts into runs. Importing a module of this package has no effect.
"""
