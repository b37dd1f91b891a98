"""Factored, block-wise and sign-based optimizers."""
