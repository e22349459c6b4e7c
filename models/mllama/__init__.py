"""Llama 3.2 Vision (mllama): a tiled image encoder, and a text model that looks at it in cross-attention layers."""
