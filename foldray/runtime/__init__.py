"""The process: joining Ray, the terminal, optional packages."""
