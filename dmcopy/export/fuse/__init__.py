"""The front end `fuse`: devices as files, by FUSE."""
