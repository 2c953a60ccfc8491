"""Folding: run a few physical layers along many paths. Plain torch; knows nothing of Ray or of model families."""
