"""Names of the files in a run's folder, and the formats of its exports."""

CONFIG_FILE = "config.yaml"
# The weights of the last evaluation, and those of the highest greedy return.
WEIGHTS = {"last": "weights.pt", "best": "best_weights.pt"}
SOURCES, SOURCES_FILE = "source", "files.json"  # copies of the user's files, and their list
# Formats of ``export.py``, with the packages that they need.
EXPORTS = {"pt2": (), "onnx": ("onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}
