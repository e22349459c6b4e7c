"""The `.llamac` file: layout, manifest, writer, reader and verifier; docs/artifact-format.md describes the format."""
