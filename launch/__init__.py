"""What launchers start: `ray job submit`, `deepspeed`, `torchrun`, `srun`, or plain `python`."""
