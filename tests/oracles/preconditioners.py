"""Transcriptions: SOAP, Shampoo, PSGD and other preconditioners."""
