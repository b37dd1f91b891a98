"""Averages of the parameters, look-ahead, sharpness, and wrappers."""
