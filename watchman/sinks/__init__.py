"""Where accepted uploads go."""
