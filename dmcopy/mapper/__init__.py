"""Mapped devices: one interface, `Mapper`, and the engines behind it."""
