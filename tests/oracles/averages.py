"""Transcriptions: averages of the parameters, look-ahead, sharpness, and wrappers."""
