"""Formats that are shared with the kernel, byte for byte: parsed and built, without any I/O."""
