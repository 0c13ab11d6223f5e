"""Looking at mirrors offline: whether the legs agree, and what the log says of it."""
