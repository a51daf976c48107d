"""Samples of the plan as a Ray Data stream: render workers make batches, ranks take them."""
