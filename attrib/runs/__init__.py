"""Work that is described in a file: its prompts, its model and attributions, its result, and the result made again."""
