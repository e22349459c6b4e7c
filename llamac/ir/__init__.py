"""The intermediate representation: types, graphs, text, verifier, interpreter."""
