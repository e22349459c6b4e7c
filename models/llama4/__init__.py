"""Llama 4: alternating kinds of attention, mixtures of experts, and images as tokens."""
