"""How commands start, what they are told and what they say."""
