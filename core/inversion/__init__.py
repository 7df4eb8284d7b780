"""Inversion of a clip or video to the noise that it could have been made from (I2VEdit, Video-P2P)."""
