"""Small changes of a module, and whether the tests notice them: what `./scripts/mutate` runs."""
