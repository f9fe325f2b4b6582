"""Train adapters: the step, its objectives, and the loop around them."""
