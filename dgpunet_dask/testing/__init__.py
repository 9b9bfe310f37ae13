"""Fakes that ship with the product; imported by tests only."""
