"""A world of printed cards whose truth is known: words for it, pictures of it, and a CLIP trained on it from scratch."""
