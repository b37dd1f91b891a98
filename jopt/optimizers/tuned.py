"""Optimizers that estimate their rate, or read the loss or its curvature."""
