"""Attribution: what each part of the model causes of a difference between two prompts."""
