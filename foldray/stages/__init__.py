"""One file for each stage: what a command does, from a spec to files in the store."""
