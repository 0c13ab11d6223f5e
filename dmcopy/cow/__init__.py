"""Exception stores offline: read, check, extract, merge, compare and draw any COW device."""
