"""Engine, checkpoint, loop and launch: how a stage is trained on any number of workers."""
