"""Capture of torch modules and exported programs."""
