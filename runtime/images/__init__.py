"""Pictures on their way into a model: decoding, tiles, and the tokens that stand for them."""
