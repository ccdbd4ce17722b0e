"""Compatibility adapters: an update that breaks too much is mended by training, not by hand."""
