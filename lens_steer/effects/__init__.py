"""What an intervention does to the rest of the model."""
