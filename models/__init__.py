"""Front doors: checkpoints, presets and torch modules become captured graphs."""
