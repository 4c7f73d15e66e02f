"""What is counted, timed and watched, and who is told when it goes wrong."""
