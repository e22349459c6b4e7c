"""The dense Llama architecture: config, weight names, textbook graph."""
