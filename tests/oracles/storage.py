"""Transcriptions: state in fewer bits."""
