"""Judges masks without sharing code with the masker: it looks at renders and at decoded tokens only."""
