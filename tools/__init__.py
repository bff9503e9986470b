"""What makes the data that the repository ships."""
