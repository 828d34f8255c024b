"""Speed and memory of models, measured beside each other."""
