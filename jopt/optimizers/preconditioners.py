"""Preconditioned optimizers: SOAP, Shampoo, PSGD."""
