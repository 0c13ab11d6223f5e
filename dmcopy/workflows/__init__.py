"""Recipes over any `Mapper`: snapshots and mirrors of live devices, safe against interruption."""
