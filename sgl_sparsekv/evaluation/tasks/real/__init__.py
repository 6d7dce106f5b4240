"""Real documents out of what every Python has: its language reference and its library."""
