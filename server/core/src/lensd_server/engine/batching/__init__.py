"""Rows of all analyses of one model, run together on its device."""
