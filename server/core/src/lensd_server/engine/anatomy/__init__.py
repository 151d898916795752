"""Understanding decoders: finding their parts, verifying how they add up, capturing activations."""
