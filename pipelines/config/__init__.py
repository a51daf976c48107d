"""What a run is: its settings, the presets, and what follows from them."""
