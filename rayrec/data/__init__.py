"""From bytes to batches: readers, preparation, prompts, the data order and the Ray Data streams."""
