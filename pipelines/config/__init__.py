"""The settings of a run, the presets, and the values that follow from them."""
