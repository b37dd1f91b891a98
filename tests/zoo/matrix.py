"""Muon and its descendants, and what the matrix engine runs."""
