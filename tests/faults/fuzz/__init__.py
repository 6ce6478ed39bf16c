"""Readers, given bytes that nobody meant to write."""
