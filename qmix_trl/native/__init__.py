"""Code that the machine's own compiler builds, kept on disk; it imports nothing else of ours."""
