"""The null backend: counts the work and generates nothing."""
