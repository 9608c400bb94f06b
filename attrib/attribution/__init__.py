"""The public questions: token to latent, latent to latent, latent to logit, latent to metric; and what each will cost."""
