"""Bots: people say what they should do, the acting listener makes it so and says what it sees."""
