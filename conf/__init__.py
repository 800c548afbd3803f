"""Presets, read as package data of `gptlab.conf`."""
