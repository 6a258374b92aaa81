"""What a method is, what it may look at, and that its answers are checked."""
