"""The only training loop, its checkpoints, and how Ray Train runs it."""
