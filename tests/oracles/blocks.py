"""Transcriptions: factored, block-wise and sign-based optimizers."""
