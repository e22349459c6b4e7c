"""What a model needs on a machine and the least time it can take there: arithmetic on a config, without weights."""
