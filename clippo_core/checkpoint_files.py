"""Names of the files of a native checkpoint; `checkpoints/native.py` says what they hold.

Apart from it, because processes that only look for checkpoints do without torch.
"""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FONT_FILE = "font.glyphs.xz"
VOCABULARY_FILE = "vocabulary.model"
STATE_FILE = "train_state.json"
MOMENTS_FILE = "train_state.safetensors"
