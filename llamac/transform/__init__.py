"""The pass API: passes, patterns, rewriting, pipelines, validation."""
