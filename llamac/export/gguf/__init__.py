"""Writes GGUF files, for llama.cpp, and a Modelfile beside them, for Ollama."""
