"""llamac."""
