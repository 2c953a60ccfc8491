"""The command line: verbs, tables, checks of the machine."""
