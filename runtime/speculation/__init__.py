"""Guesses of the next tokens, and what is made of them: several tokens a step, none of them another than without."""
