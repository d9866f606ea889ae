"""How masks are made: templates that are followed, turns that are found, tokens that are exact."""
