"""What an intervention does to the text: generation, fluency, concept scores."""
