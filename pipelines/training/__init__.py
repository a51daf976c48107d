"""Training on Ray Train: the driver, what each rank does, and what they exchange."""
