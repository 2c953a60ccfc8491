"""What a process needs to run: Ray, the terminal, optional packages."""
