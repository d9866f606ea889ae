"""The site that is built from docs/, and the parts of docs/ and recipes/ that are made from the code."""
