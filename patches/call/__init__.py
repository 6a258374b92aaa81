"""What is installed on a model, and the call that a thread is in."""
