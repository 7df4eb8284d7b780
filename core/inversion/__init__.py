"""I2VEdit's way from a clip to the noise that would have made it."""
