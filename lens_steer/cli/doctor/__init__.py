"""`lens-steer doctor`: what this installation, machine and model can do, measured, and what is at fault."""
