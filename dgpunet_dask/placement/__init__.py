"""The pure core of placement: facts, charges and a demand in, a decision out. No clock, file, environment or chance in here."""
