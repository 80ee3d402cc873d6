"""The arguments of the verbs: parsing alone, so nothing slow is imported here."""
