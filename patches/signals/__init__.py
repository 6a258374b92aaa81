"""What methods ask to know beside the features, collected only where they do."""
