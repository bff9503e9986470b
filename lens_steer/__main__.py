"""`python -m lens_steer`, and so `torchrun -m lens_steer` and `accelerate launch -m lens_steer`."""

from lens_steer.cli import main

main()
