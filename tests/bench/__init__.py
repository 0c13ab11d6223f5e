"""The benchmark, `./scripts/bench`: dmcopy beside its peers and C, in interleaved rounds."""
