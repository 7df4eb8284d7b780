"""Comparing edited pictures, and attention, with the truth."""
