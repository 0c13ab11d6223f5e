"""The command line: one module per noun over a thin `main`."""
