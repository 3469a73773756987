"""Tables and figures of quality: perplexity, divergence and accuracy of every cell."""
