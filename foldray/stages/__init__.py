"""One file a stage: what each command does, from a spec to files in the store."""
