"""Search for a better setting: many ordinary runs on the validation rows, and one measurement of the best on the test rows."""
