"""Pages of latents: what a corpus shows of each, and what the weights say of it, as one file of HTML that asks no network."""
